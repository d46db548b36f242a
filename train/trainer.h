// Training: from a configuration to a run folder with a trained model.
//
//   RUN/config.yaml       the resolved configuration        RUN/metrics.jsonl     a record a step (metrics.h)
//   RUN/run.json          versions, hosts, sizes, memory    RUN/samples.jsonl     texts written on the way
//   RUN/tokenizer.json    the corpus's                      RUN/checkpoints/      (checkpoint/checkpoint.h)
//
// A run that exists continues from its newest good checkpoint, with the same weights and losses, bit for bit on the same
// layout, as if it had never stopped.
#pragma once

#include "parallel/comm.h"
#include "train/run_config.h"

// Trains on all ranks of `world`. `config` was read (run_config_read) from `config_path`, the same on all ranks; it is resolved
// here. The error of a collective stage is the same on all ranks (comm_agree); after any other the caller must call comm_abort.
// *stopped is set where a signal ended the run early with its work saved.
Error *train_run(RunConfig *config, const char *config_path, Comm *world, bool *stopped) MUST_CHECK;

// Asks a running train_run to save and stop after the step under way, because of that signal. One rank's is enough. Safe in a
// signal handler.
void train_request_stop(int signal_number);
