/* The advisor's sample of keys, for the arena that tells it of uses.  See shards.c. */
#ifndef TIERED_SHARDS_H
#define TIERED_SHARDS_H

#include "native.h"

#include <stdint.h>

typedef struct TieredShards TieredShards;

extern PyTypeObject TieredShardsType;

/* Notes a use of a key, by its hash; `counted` if it is a read. */
void tiered_shards_touch(TieredShards *shards, uint32_t hash, uint32_t size, int counted);

#endif
