// <cuda_runtime.h> of the simulated GPU: the runtime API, in C++ also the device half and kernel launches.
#pragma once

// First: CUDA's words are macros, and the library's headers know some of them.
#ifdef __cplusplus
#include <functional>
#include <tuple>
#include <type_traits>
#endif

#include <cuda_runtime_api.h>

#ifdef __cplusplus
#include <simulated_device.h>

// Puts a launch into its stream; `thread` is what every thread of the grid does.
cudaError_t simulated_launch(const cudaLaunchConfig_t *config, const void *kernel, std::function<void()> thread);

template <typename... Parameters, typename... Arguments>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...),
                                             Arguments &&...arguments) {
    // Arguments are copied at the launch, as CUDA does.
    std::tuple<std::remove_cv_t<Parameters>...> values(static_cast<Arguments &&>(arguments)...);
    return simulated_launch(config, (const void *)kernel, [kernel, values] { std::apply(kernel, values); });
}
#endif
