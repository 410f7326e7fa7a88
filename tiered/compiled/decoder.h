/* Decoding for the other files of the compiled part. */
#ifndef TIERED_DECODER_H
#define TIERED_DECODER_H

#include "native.h"

/* Whether an object is a `Decoder`. */
int tiered_is_decoder(PyObject *object);
/* The value of a payload that stays where it is meanwhile, whatever other code runs; NULL without an exception: it is the twin's. */
PyObject *tiered_decode(PyObject *decoder, const unsigned char *payload, Py_ssize_t size);

#endif
