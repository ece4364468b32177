// Kernels that nvcc compiles for a GPU, and any C++ compiler for the processor: the same source, the same flow, where there is no
// GPU to try it on. Only what the examples use.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define LAUNCH(kernel, blocks, threads, ...) kernel<<<blocks, threads>>>(__VA_ARGS__)
static const char *where() { return "GPU"; }
#else
#include <cstdlib>
#include <cstring>
#define __global__
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
static dim3 blockIdx, blockDim, threadIdx;
typedef int cudaError_t;
enum { cudaSuccess = 0, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
static cudaError_t cudaMalloc(float **p, size_t n) { return (*p = (float *)malloc(n)) ? 0 : 1; }
static cudaError_t cudaMemcpy(void *to, const void *from, size_t n, int) { return memcpy(to, from, n) ? 0 : 1; }
static cudaError_t cudaDeviceSynchronize() { return 0; }
static cudaError_t cudaFree(void *p) { return free(p), 0; }
static const char *cudaGetErrorString(cudaError_t) { return "no memory"; }
// One thread after the other, block by block.
#define LAUNCH(kernel, blocks, threads, ...)                                                              \
  do {                                                                                                    \
    dim3 grid = blocks;                                                                                   \
    blockDim = threads;                                                                                   \
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)                                               \
      for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)                                             \
        for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)                                    \
          for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) kernel(__VA_ARGS__);             \
  } while (0)
static const char *where() { return "CPU"; }
#endif

#include <cstdio>

#define CHECK(call)                                                                                       \
  do {                                                                                                    \
    cudaError_t error = call;                                                                             \
    if (error != cudaSuccess) {                                                                           \
      fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error));                                      \
      return 1;                                                                                           \
    }                                                                                                     \
  } while (0)
