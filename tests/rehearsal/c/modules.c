/* Loaded cubins: the wrapper of ptxas appends to each the PTX that it came from. */
#include "stand_in.h"
#include <elf.h>
#include <stdlib.h>
#include <string.h>

static const char trailer[] = "\nPTX of this cubin:\n"; /* as ptxas.sh writes it */
static char **texts;
static int64_t count;

/* An image has no length: its headers say where the last of its sections and tables ends. */
static size_t elf_size(const unsigned char *image)
{
    const Elf64_Ehdr *header = (const void *)image;
    size_t end = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
    size_t segments = header->e_phoff + (size_t)header->e_phnum * header->e_phentsize;
    if (segments > end) end = segments;
    const Elf64_Shdr *sections = (const void *)(image + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        size_t section = sections[i].sh_offset + sections[i].sh_size;
        if (sections[i].sh_type != SHT_NOBITS && section > end) end = section;
    }
    return end;
}

static char *ptx_after(const void *image)
{
    if (memcmp(image, ELFMAG, SELFMAG)) return NULL;
    const char *end = (const char *)image + elf_size(image);
    bool found = !strncmp(end, trailer, sizeof trailer - 1);
    return found ? strdup(end + sizeof trailer - 1) : NULL;
}

/* Numbers the modules from 1. */
int64_t rehearsal_new_module(const void *image)
{
    char *text = ptx_after(image);
    LOCKED;
    texts = realloc(texts, (count + 1) * sizeof *texts);
    texts[count] = text;
    return ++count;
}

/* The PTX of a module, or NULL where its cubin came without. */
const char *rehearsal_module_ptx(int64_t module)
{
    LOCKED;
    return module >= 1 && module <= count ? texts[module - 1] : NULL;
}
