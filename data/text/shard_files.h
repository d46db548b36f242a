// Shards that are given more than once.
//
// "a.jsonl", "./a.jsonl", a link to it and a copy of it are one shard: taken twice, its text would count twice. A corpus that
// shall hold a set more often says so with data.mixture or data.epochs.
#pragma once

#include "core/memory.h"

// Appends the given files to `once`, in their order, without those that are an earlier one under another name (the same device
// and inode) or with the same content; each that is left out is told by a warning. Only files of equal size are compared, up to
// their first difference. A file that cannot be looked at is an error.
Error *shard_files_once(const Strings *given, Strings *once) MUST_CHECK;
