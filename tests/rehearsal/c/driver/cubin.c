/* Reads a cubin, which is an ELF file. The size of section .nv.shared.K is the static shared memory
   of kernel K, and .nv.info lists attributes of all kernels. */
#include "cubin.h"
#include <elf.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const Elf64_Shdr *sections_of(const void *image)
{
    return (const void *)((const char *)image + ((const Elf64_Ehdr *)image)->e_shoff);
}

static size_t later(size_t a, size_t b) { return a > b ? a : b; }

size_t cubin_size(const void *image)
{
    const Elf64_Ehdr *header = image;
    if (memcmp(image, ELFMAG, SELFMAG)) return 0;
    size_t end = later(header->e_shoff + (size_t)header->e_shnum * header->e_shentsize,
                       header->e_phoff + (size_t)header->e_phnum * header->e_phentsize);
    const Elf64_Shdr *sections = sections_of(image);
    for (int i = 0; i < header->e_shnum; i++)
        if (sections[i].sh_type != SHT_NOBITS)
            end = later(end, sections[i].sh_offset + sections[i].sh_size);
    return end;
}

static const Elf64_Shdr *section(const void *image, const char *prefix, const char *kernel)
{
    const Elf64_Ehdr *header = image;
    const Elf64_Shdr *sections = sections_of(image);
    const char *names = (const char *)image + sections[header->e_shstrndx].sh_offset;
    char wanted[1024];
    snprintf(wanted, sizeof wanted, "%s%s", prefix, kernel);
    for (int i = 0; i < header->e_shnum; i++)
        if (!strcmp(names + sections[i].sh_name, wanted)) return &sections[i];
    return NULL;
}

static bool names_kernel(const void *image, uint32_t symbol, const char *kernel)
{
    const Elf64_Shdr *table = section(image, ".symtab", ""), *text = section(image, ".strtab", "");
    if (!table || !text) return false;
    const Elf64_Sym *symbols = (const void *)((const char *)image + table->sh_offset);
    return !strcmp((const char *)image + text->sh_offset + symbols[symbol].st_name, kernel);
}

enum { LONG_FORMAT = 4, FRAME_SIZE = 0x11, REGISTERS = 0x2f };

/* An attribute is a format, a code, and a value of two bytes. For format 4 the value is the length
   of the data that follows: here a kernel's symbol and a number. */
static int attribute(const void *image, const char *kernel, int code)
{
    const Elf64_Shdr *info = section(image, ".nv.info", "");
    if (!info) return 0;
    const unsigned char *at = (const unsigned char *)image + info->sh_offset;
    const unsigned char *end = at + info->sh_size;
    while (at + 4 <= end) {
        uint16_t length = at[0] == LONG_FORMAT ? at[2] | at[3] << 8 : 0;
        uint32_t pair[2];
        if (at[1] == code && length == sizeof pair) {
            memcpy(pair, at + 4, sizeof pair);
            if (names_kernel(image, pair[0], kernel)) return pair[1];
        }
        at += 4 + length;
    }
    return 0;
}

kernel_facts cubin_facts(const void *image, const char *kernel)
{
    const Elf64_Shdr *shared = section(image, ".nv.shared.", kernel);
    return (kernel_facts){
        .registers = attribute(image, kernel, REGISTERS),
        .local_bytes = attribute(image, kernel, FRAME_SIZE),
        .shared_bytes = shared ? (int)shared->sh_size : 0,
    };
}
