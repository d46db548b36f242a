// What a process needs before it does anything, whatever it was started from.
#pragma once

// First thing in main. Descriptors 0 to 2 are open from here on: where one was closed, the next file would get its number, and
// messages would be written into that file. What is put there answers as a closed one does, so that results that cannot be
// written are still an error. A file that grows beyond the limit of its size (ulimit -f) becomes a failed write, not a signal.
void process_begin(void);
