/* The checksum of records in the journal and in the cold tier. */
#ifndef TIERED_CHECKSUM_H
#define TIERED_CHECKSUM_H

#include "native.h"
#include <stdint.h>

uint32_t tiered_crc32(uint32_t crc, const unsigned char *data, size_t size);

#endif
