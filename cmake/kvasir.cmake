# Compiler settings and the two functions every room uses: kvasir_library and kvasir_test.

find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(PkgConfig REQUIRED)

add_library(kvasir_flags INTERFACE)
target_include_directories(kvasir_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(kvasir_flags INTERFACE -Wall -Wextra -Wno-missing-field-initializers -Wno-sign-compare -fno-strict-aliasing
                                              -ffp-contract=off -pthread)
target_compile_definitions(kvasir_flags INTERFACE KVASIR_VERSION="${PROJECT_VERSION}" SPDLOG_COMPILED_LIB SPDLOG_FMT_EXTERNAL)
if(KVASIR_SANITIZE STREQUAL "address")
  target_compile_options(kvasir_flags INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(kvasir_flags INTERFACE -fsanitize=address,undefined)
elseif(KVASIR_SANITIZE STREQUAL "thread")
  target_compile_options(kvasir_flags INTERFACE -fsanitize=thread -fno-omit-frame-pointer)
  target_link_options(kvasir_flags INTERFACE -fsanitize=thread)
endif()

if(KVASIR_FUZZ)
  target_compile_options(kvasir_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# ccache and mold where they are: they only make the build faster.
find_program(KVASIR_CCACHE ccache)
if(KVASIR_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
                                  ${KVASIR_CCACHE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(kvasir_flags INTERFACE -fpch-preprocess)
  endif()
endif()
find_program(KVASIR_MOLD mold)
if(KVASIR_MOLD)
  target_link_options(kvasir_flags INTERFACE -fuse-ld=mold)
endif()

# The headers nearly every file includes, compiled once for all libraries.
set(KVASIR_PCH <algorithm> <cstdint> <map> <memory> <optional> <span> <string> <string_view> <unordered_map> <vector>
               <fmt/format.h> <absl/status/statusor.h>)

file(WRITE ${CMAKE_BINARY_DIR}/headers.cc "")
add_library(kvasir_headers OBJECT ${CMAKE_BINARY_DIR}/headers.cc)
target_link_libraries(kvasir_headers PRIVATE kvasir_flags fmt::fmt absl::statusor)
target_precompile_headers(kvasir_headers PRIVATE ${KVASIR_PCH})

# kvasir_library(NAME SOURCES a.cc ... DEPS lib ...): one library for one room. With KVASIR_UNITY it is compiled in few pieces, so
# names in its unnamed namespaces must differ.
function(kvasir_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC kvasir_flags ${ARG_DEPS})
  target_precompile_headers(${name} REUSE_FROM kvasir_headers)
  set_target_properties(${name} PROPERTIES UNITY_BUILD ${KVASIR_UNITY} UNITY_BUILD_BATCH_SIZE 8)
endfunction()

# Where tests look for their data; "." makes programs that can be carried to another copy of the tree (tools/gpu_check).
set(KVASIR_TEST_SOURCE_DIR ${PROJECT_SOURCE_DIR} CACHE STRING "Folder of the sources, as tests see it")

# kvasir_test(NAME SOURCES a_test.cc ... DEPS lib ... [LABELS l ...] [TIMEOUT s] [COMPUTES]): one GoogleTest executable, one ctest
# entry. Under ThreadSanitizer only tests with the label "threads" are built: it finds nothing where there is one thread.
# Sanitizers' checks make tests take twice as long to optimise, and what they test is optimised: they are not, but for those that
# compute much themselves, or deep in recursions (COMPUTES).
function(kvasir_test name)
  cmake_parse_arguments(ARG "COMPUTES" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(KVASIR_SANITIZE STREQUAL "thread" AND NOT "threads" IN_LIST ARG_LABELS)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kvasir_flags Threads::Threads ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  if(KVASIR_SANITIZE AND ARG_COMPUTES)
    set_target_properties(${name} PROPERTIES DISABLE_PRECOMPILE_HEADERS ON)  # those are for the others' flags
  elseif(KVASIR_SANITIZE)
    target_compile_options(${name} PRIVATE -O0)
  endif()
  if(TARGET kvasir_test_headers)
    target_precompile_headers(${name} REUSE_FROM kvasir_test_headers)
  else()
    file(WRITE ${CMAKE_BINARY_DIR}/test_headers.cc "int main() {}\n")
    add_executable(kvasir_test_headers ${CMAKE_BINARY_DIR}/test_headers.cc)
    target_link_libraries(kvasir_test_headers PRIVATE kvasir_flags Threads::Threads fmt::fmt GTest::gtest GTest::gmock)
    target_compile_options(kvasir_test_headers PRIVATE $<$<BOOL:${KVASIR_SANITIZE}>:-O0>)
    target_compile_definitions(kvasir_test_headers PRIVATE KVASIR_SOURCE_DIR="${KVASIR_TEST_SOURCE_DIR}")
    target_precompile_headers(kvasir_test_headers PRIVATE ${KVASIR_PCH} <gtest/gtest.h> <gmock/gmock.h>)
    target_precompile_headers(${name} REUSE_FROM kvasir_test_headers)
  endif()
  target_compile_definitions(${name} PRIVATE KVASIR_SOURCE_DIR="${KVASIR_TEST_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND ${name} --gtest_brief=1 WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  if(KVASIR_SANITIZE)  # and machines differ by two to three times
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 3")
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}"
                       ENVIRONMENT "TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/tsan.supp")
endfunction()
