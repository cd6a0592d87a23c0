/* Torch looks up driver functions by name; this finds them in the stand-in's libcuda. */
#include "stand_in.h"
#include <dlfcn.h>
#include <stdio.h>

static void *driver_function(const char *name)
{
    static void *driver;
    if (!driver) driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    char versioned[256];
    for (int version = 4; version >= 2; version--) {
        snprintf(versioned, sizeof versioned, "%s_v%d", name, version);
        void *found = dlsym(driver, versioned);
        if (found) return found;
    }
    return dlsym(driver, name);
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result)
{
    (void)version, (void)flags;
    *function = driver_function(name);
    if (result)
        *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
