// Runs decode_lossless on the CPU: the threads of a block are threads here, one block after the other.
// Reads rows, columns, code_bytes, num_escapes and offset (int32 each) and the arrays from stdin, and writes the
// policy to stdout. `offset` moves both matrices that many elements from the alignment of an allocation.

#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#define __device__ static
#define __global__
#define __shared__ static
#define __syncthreads() block_barrier.arrive_and_wait()
#define __popc __builtin_popcount

static std::barrier block_barrier(THREADS);
thread_local struct {
    int x;
} threadIdx, blockIdx;

#include KERNEL

template <typename T> std::vector<T> read(size_t count, size_t skipped = 0) {
    std::vector<T> values(skipped + count);
    if (count && std::fread(values.data() + skipped, sizeof(T), count, stdin) != count)
        std::exit(2);
    return values;
}

int main() {
    const auto header = read<int>(5);
    const int rows = header[0], columns = header[1], code_bytes = header[2], num_escapes = header[3];
    const size_t offset = header[4], size = size_t(rows) * columns;
    const auto reference = read<u16>(size, offset);
    const auto flags = read<u8>(size_t(rows) * ((columns + COLUMNS - 1) / COLUMNS));
    const auto codes = read<u8>(code_bytes);
    const auto starts = read<int>(2 * (size_t(rows) + 1));
    const auto escapes = read<u16>(num_escapes);
    std::vector<u16> policy(offset + size);

    std::vector<std::thread> threads;
    for (int thread = 0; thread < THREADS; ++thread)
        threads.emplace_back([&, thread] {
            threadIdx.x = thread;
            for (blockIdx.x = 0; blockIdx.x < rows; ++blockIdx.x) {
                decode_lossless(reference.data() + offset, flags.data(), codes.data(), starts.data(), escapes.data(),
                                policy.data() + offset, columns, code_bytes, num_escapes);
                block_barrier.arrive_and_wait();
            }
        });
    for (auto &thread : threads)
        thread.join();
    return !size || std::fwrite(policy.data() + offset, sizeof(u16), size, stdout) == size ? 0 : 3;
}
