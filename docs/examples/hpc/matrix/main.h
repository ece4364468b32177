// What both programs do around their kernel: fill, run, compare with the processor's own result, write the corner to a file.
#pragma once
#include <cmath>
#include <vector>

#include "device.h"

const int N = 192, TILE = 16;

__global__ void kernel(const float *a, const float *b, float *c, int n);
float expected(const std::vector<float> &a, const std::vector<float> &b, int row, int column);

static int run(const char *name, const char *file) {
  std::vector<float> a(N * N), b(N * N), c(N * N);
  for (int i = 0; i < N * N; i++) a[i] = i % 7, b[i] = i % 5;
  const size_t bytes = N * N * sizeof(float);
  float *da, *db, *dc;
  CHECK(cudaMalloc(&da, bytes));
  CHECK(cudaMalloc(&db, bytes));
  CHECK(cudaMalloc(&dc, bytes));
  CHECK(cudaMemcpy(da, a.data(), bytes, cudaMemcpyHostToDevice));
  CHECK(cudaMemcpy(db, b.data(), bytes, cudaMemcpyHostToDevice));
  LAUNCH(kernel, dim3(N / TILE, N / TILE), dim3(TILE, TILE), da, db, dc, N);
  CHECK(cudaDeviceSynchronize());
  CHECK(cudaMemcpy(c.data(), dc, bytes, cudaMemcpyDeviceToHost));
  for (int row = 0; row < N; row++)
    for (int column = 0; column < N; column++)
      if (std::fabs(c[row * N + column] - expected(a, b, row, column)) > 1e-2f) {
        fprintf(stderr, "%s: wrong at %d,%d\n", name, row, column);
        return 1;
      }
  FILE *out = fopen(file, "w");
  if (!out) return 1;
  for (int row = 0; row < 4; row++, fputc('\n', out))
    for (int column = 0; column < 4; column++) fprintf(out, "%g ", c[row * N + column]);
  fclose(out);
  printf("%s of %dx%d on the %s: correct\n", name, N, N, where());
  CHECK(cudaFree(da));
  CHECK(cudaFree(db));
  CHECK(cudaFree(dc));
  return 0;
}
