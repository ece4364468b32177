#include "main.h"

__global__ void kernel(const float *a, const float *b, float *c, int n) {
  int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= n || column >= n) return;
  float sum = 0;
  for (int k = 0; k < n; k++) sum += a[row * n + k] * b[k * n + column];
  c[row * n + column] = sum;
}

float expected(const std::vector<float> &a, const std::vector<float> &b, int row, int column) {
  float sum = 0;
  for (int k = 0; k < N; k++) sum += a[row * N + k] * b[k * N + column];
  return sum;
}

int main() { return run("multiply", "product.txt"); }
