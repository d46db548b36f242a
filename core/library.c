// Shared libraries: see library.h.
#include "core/library.h"

#include <dlfcn.h>
#include <stddef.h>

void *library_function(const char *library, const char *otherwise, const char *name) {
    void *opened = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (opened == NULL && otherwise != NULL) {
        opened = dlopen(otherwise, RTLD_NOW | RTLD_LOCAL);
    }
    return opened != NULL ? dlsym(opened, name) : NULL;
}
