// athanor train: a run from a configuration, alone or as one of many ranks.
#include "core/log.h"
#include "launch/commands.h"
#include "launch/presets.h"
#include "train/trainer.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

typedef struct Options {
    bool keys;
} Options;

static const Key flags[] = {
    {"keys", KEY_BOOL, offsetof(Options, keys), "false",
     .help = "Print the reference of all configuration keys as Markdown and stop."},
};

// Whoever asks twice by Ctrl-C or SIGTERM does not want to wait: the second kills. The launcher is not who asks twice: it
// passes on what a batch system may have sent to every process before.
static void on_signal(int number, siginfo_t *from, void *context) {
    static volatile sig_atomic_t asked[NSIG];
    bool impatient = asked[number] && (number == SIGINT || number == SIGTERM);
    if (impatient && !(comm_started_by_launcher() && from->si_pid == getppid())) {
        signal(number, SIG_DFL);
        raise(number);
    }
    asked[number] = 1;
    train_request_stop(number);
}

// Everything that the world outside sends to end a run, or before it ends one, saves it first: SIGTERM and SIGXCPU (limits),
// SIGINT (Ctrl-C), SIGHUP (the terminal is gone), SIGPWR, and what batch systems are told to send before the limit. Where
// SIGINT or SIGHUP was ignored from the start (nohup), it stays so. A reader of the log that is gone, or reads no more, is no
// reason to stop.
static void catch_signals(void) {
    static const int stops[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU, SIGPWR};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART}, before;
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        sigaction(stops[i], NULL, &before);
        if (before.sa_handler != SIG_IGN || (stops[i] != SIGINT && stops[i] != SIGHUP)) {
            sigaction(stops[i], &action, NULL);
        }
    }
    signal(SIGPIPE, SIG_IGN);
    log_never_wait();
}

static Error *train(Comm *world, int count, char **arguments) {
    RunConfig config = {0};
    bool stopped = false;
    char *path;
    Error *error = preset_find(arguments[0], &path);
    error = comm_agree(world, error == NULL ? run_config_read(&config, path, arguments + 1, count - 1) : error);
    if (error == NULL) {
        catch_signals();
        error = train_run(&config, path, world, &stopped);
    }
    if (error == NULL && stopped) {
        Error *told = world->rank == 0
                          ? failure("stopped by a signal with everything saved in %s; the same command goes on", config.folder)
                          : NULL;
        error = comm_agree(world, told);
    }
    run_config_free(&config);
    free(path);
    return error;
}

static Error *run(const void *options, int count, char **arguments) {
    if (((const Options *)options)->keys) {
        Buffer text = {0};
        run_config_document(&text);
        fputs(text.data, stdout);
        buffer_free(&text);
        return NULL;
    }
    if (count == 0) {
        return usage_error("a configuration is missing; usage: athanor train CONFIG [key.path=value ...]");
    }
    Comm *world;
    TRY(comm_open_world(&world));
    Error *error = train(world, count, arguments);
    if (error != NULL && (world->size > 1 || comm_started_by_launcher())) {
        // The others may wait for this rank for ever. Rank 0 reports what all agreed on; a rank alone reports its own. It does
        // so before MPI is taken down, for which a launcher that is about to kill may leave no time.
        if (*error->message != 0) {
            log_error("%s", error->message);
        }
        comm_abort(world, error->kind == ERROR_USAGE ? 2 : 1);
    }
    comm_close(world);
    return error;
}

const Command command_train = {
    .name = "train",
    .arguments = "CONFIG [key.path=value ...]",
    .summary = "train a model; alone, or on several ranks under mpirun or srun",
    .details = "CONFIG is a YAML file or the name of a preset ('athanor configs' lists them). Continues where the run folder's "
               "newest\n"
               "checkpoint stands. docs/configuration.md lists all keys, as --keys does.\n"
               "Ctrl-C, SIGTERM and SIGUSR1 save and stop (a second Ctrl-C kills); docs/stopping.md tells what mpirun needs.",
    .example = "  # after launch/quickstart, in the folder of the clone:\n"
               "  athanor train configs/runs/tiny.yaml train.steps=100\n"
               "  mpirun -n 2 --bind-to none --oversubscribe --allow-run-as-root athanor train configs/runs/tiny.yaml",
    .flags = flags,
    .flag_count = 1,
    .options_size = sizeof(Options),
    .least_arguments = 0,
    .most_arguments = -1,
    .settings = run_config_keys,
    .run = run,
};
