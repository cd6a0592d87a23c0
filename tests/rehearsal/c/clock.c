/* The device clock: how long each piece of work occupies its stream. Times are real time, so a call
   that waits for the device really waits. */
#include "stand_in.h"
#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { PATTERNS = 256 };
static struct { char pattern[256]; int64_t nanoseconds; } durations[PATTERNS];
static int patterns;

static const int64_t kernel_ns = 2000, transfer_ns = 1500, spin_ns = 60000;

int64_t rehearsal_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Sleeps at first and spins at the end, because a sleep ends tens of microseconds late. */
void rehearsal_wait_until(int64_t time)
{
    int64_t left = time - rehearsal_now();
    if (left > spin_ns) {
        int64_t wake = time - spin_ns;
        struct timespec at = {wake / 1000000000, wake % 1000000000};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) continue;
    }
    while (rehearsal_now() < time) continue;
}

/* Sets the duration of kernels whose name matches the shell pattern; the last matching one wins. */
int rehearsal_set_duration(const char *pattern, int64_t nanoseconds)
{
    LOCKED;
    if (patterns == PATTERNS || strlen(pattern) >= sizeof durations[0].pattern) return -1;
    strcpy(durations[patterns].pattern, pattern);
    durations[patterns++].nanoseconds = nanoseconds;
    return 0;
}

void rehearsal_forget_durations(void)
{
    LOCKED;
    patterns = 0;
}

static int64_t transfer(const copy_work *copy)
{
    const device_model *device = rehearsal_device();
    double bytes = (double)copy->width * copy->height;
    bool inside = copy->kind == cudaMemcpyDeviceToDevice;
    double rate = inside ? device->bytes_per_ns / 2 : device->host_bytes_per_ns;
    return transfer_ns + (int64_t)(bytes / rate);
}

int64_t rehearsal_duration(const work *what)
{
    switch (what->kind) {
    case COPY:
        return transfer(&what->copy);
    case FILL:
        return transfer_ns + (int64_t)(what->fill.width * what->fill.height
                                       / rehearsal_device()->bytes_per_ns);
    case KERNEL:
    case DRIVER_LAUNCH:
    case PRODUCT:
        for (int i = patterns - 1; i >= 0; i--)
            if (!fnmatch(durations[i].pattern, what->name, 0)) return durations[i].nanoseconds;
        return kernel_ns;
    default:
        return 0;
    }
}
