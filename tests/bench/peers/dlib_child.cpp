// dlib, one thread: `dlib_child FOLDER NETWORK BATCH LR MOMENTUM`, where FOLDER holds x.f32 and
// y.i32. Compiled by install.sh; the answers are those of channel.py.
#include <dlib/dnn.h>
#include <dlib/revision.h>

#include <array>
#include <cstdint>
#include <ctime>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

using namespace dlib;

template <long channels, int kernel, int stride, int pad, typename Below>
using convolution = add_layer<con_<channels, kernel, kernel, stride, stride, pad, pad>, Below>;
template <int size, typename Below>
using halve = max_pool<size, size, size, size, Below>;

using Grey = matrix<float>;
using LeNet5 = loss_multiclass_log<fc<
    10,
    relu<fc<84,
            relu<fc<120, halve<2, relu<convolution<
                                      16, 5, 1, 0,
                                      halve<2, relu<convolution<6, 5, 1, 2, input<Grey>>>>>>>>>>>>>;

template <long channels, int stride, typename Below>
using body = bn_con<
    convolution<channels, 3, 1, 1, relu<bn_con<convolution<channels, 3, stride, 1, Below>>>>>;
template <long channels, typename Below>
using same = relu<add_prev1<body<channels, 1, tag1<Below>>>>;
template <long channels, typename Below>
using down = relu<
    add_prev2<bn_con<convolution<channels, 1, 2, 0, skip1<tag2<body<channels, 2, tag1<Below>>>>>>>>;

using Colour = std::array<matrix<float>, 3>;
using ResNet8 = loss_multiclass_log<
    fc<10, avg_pool_everything<down<
               64, down<32, same<16, relu<bn_con<convolution<16, 3, 1, 1, input<Colour>>>>>>>>>>;

template <typename T>
std::vector<T> read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<T> values(static_cast<std::size_t>(file.tellg()) / sizeof(T));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<long>(values.size() * sizeof(T)));
  return values;
}

double processor_s() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void put(Grey& sample, long, const matrix<float>& plane) { sample = plane; }
void put(Colour& sample, long channel, const matrix<float>& plane) {
  sample[static_cast<std::size_t>(channel)] = plane;
}

// x (batch, channels, size, size)
template <typename Sample>
std::vector<Sample> samples_of(const std::vector<float>& x, long batch, long channels, long size) {
  if (static_cast<long>(x.size()) != batch * channels * size * size)
    throw std::runtime_error("the batch does not fit the network");
  std::vector<Sample> samples(static_cast<std::size_t>(batch));
  const float* plane = x.data();
  for (Sample& sample : samples)
    for (long channel = 0; channel < channels; ++channel, plane += size * size)
      put(sample, channel, mat(plane, size, size));
  return samples;
}

template <typename Net>
void serve(const std::string& folder, long batch, long channels, long size, double lr,
           double momentum) {
  using Sample = typename Net::input_type;
  const auto samples =
      samples_of<Sample>(read_all<float>(folder + "/x.f32"), batch, channels, size);
  const auto y = read_all<std::int32_t>(folder + "/y.i32");
  if (y.size() != samples.size()) throw std::runtime_error("one label a sample");
  const std::vector<unsigned long> labels(y.begin(), y.end());
  Net net;
  resizable_tensor rows;
  net.to_tensor(samples.begin(), samples.end(), rows);
  std::vector<sgd> solvers(Net::num_computational_layers, sgd(0.0F, static_cast<float>(momentum)));
  double loss = 0;
  std::cout << "ready " << DLIB_MAJOR_VERSION << '.' << DLIB_MINOR_VERSION << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    const long count = std::stol(line.substr(4));
    const double begin = processor_s();
    for (long i = 0; i < count; ++i) {
      loss = net.compute_parameter_gradients(rows, labels.begin());
      net.update_parameters(make_sstack(solvers), lr);
    }
    std::cout << processor_s() - begin << ' ' << loss << std::endl;
  }
}

int main(int argc, char** argv) try {
  if (argc != 6)
    throw std::runtime_error("usage: dlib_child FOLDER lenet5|resnet8 BATCH LR MOMENTUM");
  const std::string folder = argv[1], name = argv[2];
  const long batch = std::stol(argv[3]);
  const double lr = std::stod(argv[4]), momentum = std::stod(argv[5]);
  std::cout.precision(9);
  if (name == "lenet5")
    serve<LeNet5>(folder, batch, 1, 28, lr, momentum);
  else if (name == "resnet8")
    serve<ResNet8>(folder, batch, 3, 32, lr, momentum);
  else
    throw std::runtime_error("unknown network " + name);
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
