/* Loaded cubins. The wrapper of ptxas appends to each cubin the PTX that it was compiled from. */
#include "modules.h"
#include "stand_in.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CUmod_st {
    int64_t number;
    void *image;
};

static const char trailer[] = "\nPTX of this cubin:\n"; /* as ptxas.sh writes it */
static char **texts;
static int64_t count;

/* The PTX of a module, or NULL if its cubin has none. Modules are numbered from 1. */
const char *rehearsal_module_ptx(int64_t module)
{
    LOCKED;
    return module >= 1 && module <= count ? texts[module - 1] : NULL;
}

static int64_t keep(char *text)
{
    LOCKED;
    texts = realloc(texts, (count + 1) * sizeof *texts);
    texts[count] = text;
    return ++count;
}

/* A cubin runs on devices of its own generation: on its own version and on later ones, or, with the
   suffix "a", only on its own version. */
static bool runs_here(const char *ptx)
{
    const device_model *device = rehearsal_device();
    const char *target = ptx ? strstr(ptx, ".target sm_") : NULL;
    int version = 0;
    char suffix = 0;
    if (!target || sscanf(target, ".target sm_%d%c", &version, &suffix) < 1) return true;
    bool minor_fits = suffix == 'a' ? version % 10 == device->minor : version % 10 <= device->minor;
    return version / 10 == device->major && minor_fits;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    size_t size = cubin_size(image);
    if (!size) return CUDA_ERROR_INVALID_IMAGE;
    const char *end = (const char *)image + size;
    const char *ptx = strncmp(end, trailer, sizeof trailer - 1) ? NULL : end + sizeof trailer - 1;
    if (!runs_here(ptx)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    *module = malloc(sizeof **module);
    (*module)->number = keep(ptx ? strdup(ptx) : NULL);
    (*module)->image = memcpy(malloc(size), image, size);
    return CUDA_SUCCESS;
}

static char *whole_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *content = calloc(size + sizeof trailer, 1);
    size_t got = fread(content, 1, size, file);
    fclose(file);
    if (got == (size_t)size) return content;
    free(content);
    return NULL;
}

CUresult cuModuleLoad(CUmodule *module, const char *path)
{
    char *image = whole_file(path);
    if (!image) return CUDA_ERROR_FILE_NOT_FOUND;
    CUresult error = cuModuleLoadData(module, image);
    free(image);
    return error;
}

CUresult cuModuleUnload(CUmodule module)
{
    free(module->image);
    free(module);
    return CUDA_SUCCESS;
}

/* Functions are never freed, because graphs and counts hold pointers to their names. */
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    kernel_facts facts = cubin_facts(module->image, name);
    if (!facts.registers) return CUDA_ERROR_NOT_FOUND;
    *function = malloc(sizeof **function + strlen(name) + 1);
    (*function)->module = module->number;
    (*function)->facts = facts;
    (*function)->most_shared_bytes = 49152;
    strcpy((*function)->name, name);
    return CUDA_SUCCESS;
}
