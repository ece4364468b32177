#include "main.h"

__global__ void kernel(const float *a, const float *b, float *c, int n) {
  int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
  if (row < n && column < n) c[row * n + column] = a[row * n + column] + b[row * n + column];
}

float expected(const std::vector<float> &a, const std::vector<float> &b, int row, int column) {
  return a[row * N + column] + b[row * N + column];
}

int main() { return run("add", "sum.txt"); }
