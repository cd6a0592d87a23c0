/* Facts about kernels, read from their cubin. */
#pragma once
#include <stddef.h>

typedef struct {
    int registers, local_bytes, shared_bytes;
} kernel_facts;

/* The length of an image: the end of the last of its sections and tables; 0 if it is not ELF. */
size_t cubin_size(const void *image);
kernel_facts cubin_facts(const void *image, const char *kernel);
