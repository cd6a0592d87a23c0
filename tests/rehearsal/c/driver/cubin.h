/* What a cubin says of itself and its kernels. */
#pragma once
#include <stddef.h>

typedef struct {
    int registers, local_bytes, shared_bytes;
} kernel_facts;

/* An image has no length: its headers say where the last of its sections and tables ends; 0 if it is no ELF. */
size_t cubin_size(const void *image);
kernel_facts cubin_facts(const void *image, const char *kernel);
