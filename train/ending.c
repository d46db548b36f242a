// How a run ends before its last step, with its work saved: data that cannot be read, and a run folder that is gone
// (trainer_state.h). A failure that only one rank has must not leave the others waiting, so that rank takes part in the step to
// its end, with a batch that makes the step count for nothing; then all ranks hear of it, and save what they had before.
#include "train/trainer_state.h"

#include "core/durable.h"
#include "core/log.h"

#include <errno.h>
#include <math.h>
#include <sys/stat.h>

// Weights that are no numbers make every gradient so, on all ranks: the step changes no parameter.
static const Batch *blank_batch(Trainer *t) {
    Batch *blank = &t->ending.blank;
    if (blank->tokens == NULL) {
        batch_allocate(blank, t->config->train.micro_batch, t->config->data.sequence_length);
        for (int64_t b = 0; b < blank->sequences; b++) {
            batch_fill_empty(blank, b);
        }
        for (int64_t i = 0; i < blank->sequences * blank->length; i++) {
            blank->targets[i] = 0;
            blank->loss_weights[i] = NAN;
        }
    }
    return blank;
}

const Batch *trainer_next_batch(Trainer *t) {
    const Batch *batch;
    Error *lost = loader_next(t->loader, &batch);
    batch = lost != NULL ? blank_batch(t) : batch;
    error_keep(&t->ending.lost, lost);
    return batch;
}

// The lock is what shows it: it is the first thing of the folder whose loss counts, and while the run writes into a folder that
// is being removed, the folder itself may never go.
void trainer_watch_folder(Trainer *t) {
    if (t->world->rank != 0 || t->ending.gone != NULL) {
        return;
    }
    struct stat now;
    char *lock = path_join(t->config->folder, "checkpoints/lock");
    bool there = stat(lock, &now) == 0, gone = !there && (errno == ENOENT || errno == ENOTDIR);
    if (there && t->ending.lock.st_ino == 0) {
        t->ending.lock = now;
    }
    if (gone || (there && (now.st_ino != t->ending.lock.st_ino || now.st_dev != t->ending.lock.st_dev))) {
        t->ending.gone =
            failure("the run folder %s was removed, renamed or replaced under the run (%s is not what it was): the run "
                    "cannot save there any more and ends",
                    t->config->folder, lock);
    }
    free(lock);
}

Error *trainer_end_lost(Trainer *t) {
    Error *unsaved = NULL, *own = t->ending.lost, *told = NULL;
    bool news = t->step > t->record.first_step;  // since the checkpoint from which this process went on
    if (news) {
        unsaved = trainer_finish_checkpoint(t, false);
        if (unsaved == NULL) {
            trainer_begin_checkpoint(t);
            unsaved = trainer_finish_checkpoint(t, true);
        }
    }
    if (own != NULL) {
        told = error_new(own->kind, "%s; the run ends%s after step %lld", own->message,
                         !news             ? " where it began,"
                         : unsaved == NULL ? ", saved"
                                           : " and could not be saved",
                         (long long)t->step);
    }
    error_free(unsaved);
    return comm_agree(t->world, told);
}

Error *trainer_end_gone(Trainer *t) {
    Error *gone = t->ending.gone;
    t->ending.gone = NULL;
    return comm_agree(t->world, gone);
}

void trainer_warn_grace(Trainer *t, double seconds) {
    double grace = comm_stop_seconds(), needed = seconds + checkpoint_writer_time(t->writer).save;
    if (t->world->rank == 0 && !t->ending.warned && t->record.steps > 1 && needed > grace) {
        t->ending.warned = true;
        log_warning(
            "mpirun kills its ranks %.0f s after it hands SIGTERM or Ctrl-C on to them, but a step and a save take %.1f "
            "s: stop this run by SIGUSR1 to mpirun, which saves without a limit, or start the next with "
            "OMPI_MCA_odls_base_sigkill_timeout=%.0f in the environment",
            grace, needed, ceil(fmax(2 * needed, 10)));
    }
}

void trainer_ending_free(Trainer *t) {
    error_free(t->ending.lost);
    error_free(t->ending.gone);
    if (t->ending.blank.tokens != NULL) {
        batch_free(&t->ending.blank);
    }
}
