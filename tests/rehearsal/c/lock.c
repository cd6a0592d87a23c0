/* The one lock. */
#include "stand_in.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void rehearsal_lock(void) { pthread_mutex_lock(&lock); }
void rehearsal_unlock(void) { pthread_mutex_unlock(&lock); }
