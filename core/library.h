// Functions of shared libraries that a program uses where they are and does without where they are not: the vendor's products
// and NCCL, so that one program starts on machines with and without them.
#pragma once

// The function `name` of a library: looked for by its name as the loader does (LD_LIBRARY_PATH, ldconfig), then as the file
// `otherwise`, if that is not NULL. NULL where there is no such library, or no such function in it. What was found stays open.
void *library_function(const char *library, const char *otherwise, const char *name);
