// Decode of the lossless difference: the same numbers as decode in engine/cuda/lossless.py, which says what each
// array holds. Compiled by NVRTC with THREADS, a power of two, as a macro; no header is included.

typedef unsigned char u8;
typedef unsigned short u16;

// Columns of one flag byte. One thread decodes these; 16 bytes are the widest load and store of a GPU.
#define COLUMNS 8
struct alignas(16) Patterns {
    u16 at[COLUMNS];
};

__device__ u16 ordered(u16 pattern) { return pattern < 0x8000 ? pattern : (u16)(0x7FFF - pattern); }

__device__ int clamped(int value, int most) { return value < 0 ? 0 : value < most ? value : most; }

// Return the sum over the threads before this one, and write the sum over all of them to `total`.
__device__ int sum_before(int *sums, int mine, int *total) {
    const int thread = threadIdx.x;
    sums[thread] = mine;
    __syncthreads();
    for (int distance = 1; distance < THREADS; distance *= 2) {
        const int earlier = thread < distance ? 0 : sums[thread - distance];
        __syncthreads();
        sums[thread] += earlier;
        __syncthreads();
    }
    *total = sums[THREADS - 1];
    const int before = sums[thread] - mine;
    __syncthreads();
    return before;
}

// One block of THREADS threads a row. A damaged difference gives wrong numbers, but is read within its bounds.
extern "C" __global__ void decode_lossless(const u16 *reference, const u8 *flags, const u8 *codes,
                                           const int *starts, const u16 *escapes, u16 *policy, int columns,
                                           int code_bytes, int num_escapes) {
    __shared__ int sums[THREADS];
    const long long row = blockIdx.x;
    const int flag_bytes = (columns + COLUMNS - 1) / COLUMNS;
    flags += row * flag_bytes;
    reference += row * columns;
    policy += row * columns;
    long long code = 2LL * clamped(starts[2 * row], code_bytes);
    const long long end_code = 2LL * clamped(starts[2 * row + 2], code_bytes);
    long long escape = clamped(starts[2 * row + 1], num_escapes);
    const long long end_escape = clamped(starts[2 * row + 3], num_escapes);
    const bool aligned = columns % COLUMNS == 0 && ((size_t)reference | (size_t)policy) % sizeof(Patterns) == 0;

    for (int tile = 0; tile < flag_bytes; tile += THREADS) {
        const int byte = tile + threadIdx.x;
        const int width = byte < flag_bytes ? clamped(columns - byte * COLUMNS, COLUMNS) : 0;
        const unsigned changed = width ? flags[byte] : 0;

        int total;
        long long place = code + sum_before(sums, __popc(changed), &total);
        code += total;
        unsigned packed = 0;
        int escaped = 0;
        for (int column = 0; column < COLUMNS; ++column)
            if (changed >> column & 1 && place < end_code) {
                const unsigned found = codes[place / 2] >> place % 2 * 4 & 15;
                packed |= found << 4 * column;
                escaped += found == 15;
                ++place;
            }
        long long rank = escape + sum_before(sums, escaped, &total);
        escape += total;

        Patterns patterns;
        const u16 *source = reference + byte * COLUMNS;
        u16 *target = policy + byte * COLUMNS;
        if (aligned && width)
            patterns = *(const Patterns *)source;
        else
            for (int column = 0; column < COLUMNS; ++column)
                patterns.at[column] = column < width ? source[column] : 0;
        for (int column = 0; column < COLUMNS; ++column) {
            const int found = packed >> 4 * column & 15;
            if (!(changed >> column & 1))
                continue;
            if (found < 15)
                patterns.at[column] = ordered(ordered(patterns.at[column]) + found - (found < 7 ? 7 : 6));
            else if (rank < end_escape)
                patterns.at[column] = escapes[rank++];
        }
        if (aligned && width)
            *(Patterns *)target = patterns;
        else
            for (int column = 0; column < COLUMNS; ++column)
                if (column < width)
                    target[column] = patterns.at[column];
    }
}
