/* Loaded modules and the functions in them. */
#pragma once
#include "cubin.h"
#include <cuda.h>
#include <stdint.h>

struct CUfunc_st {
    int64_t module;
    kernel_facts facts;
    unsigned most_shared_bytes; /* dynamic, as set by cuFuncSetAttribute */
    char name[];
};
