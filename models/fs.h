// Fs: the read-only view of the file system that loading a model needs. A seam, so that tests can fail the n-th operation, cut
// reads short or shrink a file under the reader. Used by safetensors, weights and model loading.
//
// Files are read with pread into the caller's buffer, never mapped: a file that is truncated while it is being read gives a
// DataLoss status with the offset, not SIGBUS.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace kvasir {

class File {
 public:
  virtual ~File() = default;
  // Bytes the file had when it was opened.
  virtual uint64_t size() const = 0;
  // Changes whenever the file is replaced or written to: what else is known of it holds as long as this does. Empty = cannot
  // tell.
  virtual std::string identity() const { return ""; }
  // Reads exactly `bytes` from `offset`; fewer is DataLoss. May be called from several threads at once.
  virtual Status ReadAt(uint64_t offset, void* out, size_t bytes) const = 0;
};

class Fs {
 public:
  virtual ~Fs() = default;
  // Names of the entries of a folder, sorted, without "." and "..".
  virtual StatusOr<std::vector<std::string>> List(const std::string& dir) const = 0;
  // NotFound when there is no such file; InvalidArgument when it is not a plain file.
  virtual StatusOr<std::unique_ptr<File>> Open(const std::string& path) const = 0;
};

const Fs& RealFs();

// The whole of a text file; one larger than `limit` bytes is refused before anything is read.
StatusOr<std::string> ReadText(const Fs& fs, const std::string& path, uint64_t limit);

std::string JoinPath(const std::string& dir, const std::string& name);

}  // namespace kvasir
