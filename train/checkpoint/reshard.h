// A checkpoint written anew into another number of files.
//
// What it holds does not change, nor how its numbers are stored; each file gets an even share of every tensor. It goes through
// a buffer of a few MiB, whatever the checkpoint's size, and counts (has its name) only after everything was read back and
// compared: each file with the hash of what was written, each tensor with the digest that the source's manifest has of it.
#pragma once

#include "train/checkpoint/checkpoint.h"

// Writes the checkpoint `from` to the folder `to`, which must not exist and whose name must be that of its step. After an error
// nothing is left of it.
Error *checkpoint_reshard(const char *from, const char *to, int files) MUST_CHECK;
