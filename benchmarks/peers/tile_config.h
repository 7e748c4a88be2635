/* Included before every C++ file of llama.cpp when `make peers` builds it.
   The _tile_loadconfig of GCC 12 tells the compiler that the instruction reads 8 bytes; it reads 64. The
   compiler drops the stores to the others, and llama.cpp ends in an illegal instruction on a CPU with AMX. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" : : "m"(*(const char(*)[64])(config)))
#endif
