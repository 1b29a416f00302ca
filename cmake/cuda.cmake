# The CUDA compiler and how CUDA sources are compiled. Included when KVASIR_CUDA is on.

if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90)  # newer ones take the second's code through their driver's compiler
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # one binary: it starts where there is no CUDA, too
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  message(FATAL_ERROR "KVASIR_CUDA needs nvcc 12.4 or newer; ${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}. "
                      "scripts/cuda-compiler finds or fetches one.")
endif()
set(CMAKE_CUDA_STANDARD 20)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # the CMake of Debian 12 does not know that nvcc can
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()

# For every target with CUDA sources.
function(kvasir_cuda_flags target)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR} ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --ptxas-options=-warn-spills -Xcompiler=-Wno-unused-parameter>)
  # fmt believes that nvcc cannot do constexpr functions, and is then wrong about itself.
  target_compile_definitions(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
endfunction()
