/* The log of what happens while Python counts, in order. */
#include "stand_in.h"
#include <stdlib.h>

static log_entry *entries;
static int64_t count, capacity;
static bool counting;

void rehearsal_start_counting(void)
{
    LOCKED;
    count = 0;
    counting = true;
}

/* Returns the number of entries and their address, which is valid until counting starts again. */
int64_t rehearsal_stop_counting(log_entry **where)
{
    LOCKED;
    counting = false;
    *where = entries;
    return count;
}

static log_entry *next_entry(void)
{
    if (count == capacity) {
        capacity = capacity ? 2 * capacity : 1024;
        entries = realloc(entries, capacity * sizeof *entries);
    }
    entries[count] = (log_entry){0};
    return &entries[count++];
}

void rehearsal_log(int kind, const char *name, uint64_t bytes)
{
    if (!counting) return;
    log_entry *entry = next_entry();
    entry->kind = kind;
    entry->name = name;
    entry->bytes = bytes;
}

void rehearsal_log_work(const work *what, int flags)
{
    if (!counting) return;
    log_entry *entry = next_entry();
    entry->kind = what->kind;
    entry->name = what->name;
    entry->flags = flags;
    if (what->kind == COPY) {
        entry->bytes = what->copy.width * what->copy.height;
        entry->copy_kind = what->copy.kind;
    } else if (what->kind == FILL) {
        entry->bytes = what->fill.width * what->fill.height;
    }
    for (int i = 0; i < 3; i++) {
        entry->grid[i] = what->grid[i];
        entry->block[i] = what->block[i];
    }
    entry->shared_bytes = what->shared_bytes;
}
