#include "server/pull_command.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>

#include "server/hub.h"
#include "server/runtime.h"

namespace kvasir {
namespace {

using Time = std::chrono::steady_clock;

// File names come from a server: a terminal gets only plain characters of them.
std::string Plain(std::string_view name) {
  std::string plain;
  for (const char c : name) plain += c >= 0x20 && c < 0x7f ? c : '?';
  return plain;
}

// One line that is drawn over on a terminal; elsewhere a line for each file, and one now and then during long ones.
class ProgressLine {
 public:
  explicit ProgressLine(std::string title) : title_(std::move(title)), terminal_(isatty(STDERR_FILENO) != 0) {}
  ~ProgressLine() { Clear(); }

  void Show(const PullProgress& progress) {
    const auto now = Time::now();
    if (first_ == Time::time_point()) first_ = last_ = now, already_ = progress.done;
    const double seconds = std::chrono::duration<double>(now - first_).count();
    const double rate = seconds > 0.5 ? double(progress.done - std::min(already_, progress.done)) / seconds : 0;
    if (terminal_) {
      if (now - last_ < std::chrono::milliseconds(100) && !progress.finished) return;
      Draw(progress, rate);
    } else if (progress.finished) {
      std::fprintf(stderr, "%s: %s, %s%s\n", title_.c_str(), Plain(progress.file).c_str(),
                   FormatBytes(double(progress.file_size)).c_str(), progress.fetched ? "" : " (was there)");
    } else {
      if (now - last_ < std::chrono::seconds(15)) return;
      std::fprintf(stderr, "%s: %s, %s of %s so far, %s/s\n", title_.c_str(), Plain(progress.file).c_str(),
                   FormatBytes(double(progress.file_done)).c_str(), FormatBytes(double(progress.file_size)).c_str(),
                   FormatBytes(rate).c_str());
    }
    last_ = now;
  }
  void Remark(const std::string& line) {
    Clear();
    std::fprintf(stderr, "%s: %s\n", title_.c_str(), Plain(line).c_str());
  }

 private:
  void Draw(const PullProgress& progress, double rate) {
    constexpr int kBar = 20;
    const double part = progress.total > 0 ? std::min(1.0, double(progress.done) / double(progress.total)) : 0;
    const int filled = int(part * kBar);
    std::string line = fmt::format("pulling [{}{}] {:3.0f}% {} of {} {}/s  {}", std::string(size_t(filled), '#'),
                                   std::string(size_t(kBar - filled), '.'), part * 100, FormatBytes(double(progress.done)),
                                   FormatBytes(double(progress.total)), FormatBytes(rate), Plain(progress.file));
    // A line longer than the terminal would wrap, and could not be drawn over.
    winsize size{};
    const size_t columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
    line.resize(std::min<size_t>(columns, 160) - 1, ' ');
    std::fprintf(stderr, "\r%s", line.c_str());
    std::fflush(stderr);
    drawn_ = line.size();
  }
  void Clear() {
    if (drawn_ > 0) std::fprintf(stderr, "\r%*s\r", int(std::exchange(drawn_, 0)), "");
  }

  const std::string title_;
  const bool terminal_;
  size_t drawn_ = 0;  // characters of the line on the terminal
  Time::time_point first_, last_;
  uint64_t already_ = 0;
};

StatusOr<Pulled> PullShowing(const HubSettings& settings, const RepoName& name, PullWhat what,
                             const std::function<bool()>& keep_going) {
  ProgressLine line(name.Text());
  return PullSnapshot(settings, name, what,
                      {.keep_going = keep_going,
                       .progress = [&line](const PullProgress& progress) { line.Show(progress); },
                       .remark = [&line](const std::string& text) { line.Remark(text); }});
}

StatusOr<HubSettings> Settings(const std::string& download_dir) {
  KVASIR_ASSIGN_OR_RETURN(HubSettings settings, ReadHubSettings(ProcessEnvironment()));
  if (!download_dir.empty()) settings.cache_dir = download_dir;
  return settings;
}

std::string Join(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(names.size(), 5); ++i) text += (i == 0 ? "" : ", ") + Plain(names[i]);
  return names.size() > 5 ? fmt::format("{} and {} more", text, names.size() - 5) : text;
}

// The cache's snapshot when it is whole; else NotFound with what was looked for and where.
StatusOr<std::string> FindInCache(const HubSettings& settings, const RepoName& name, PullWhat what) {
  const RepoFolder folder(settings.cache_dir, name.repo);
  std::error_code error;
  if (!std::filesystem::is_directory(folder.path, error)) return NotFound("not in the cache (no {})", folder.path);
  const auto commit = folder.CommitOf(name.revision);
  if (commit.status().code() == StatusCode::kNotFound)
    return NotFound("the cache has no revision '{}' of it (no {})", name.revision, folder.Ref(name.revision));
  if (!commit.ok()) return commit.status();
  const std::string snapshot = folder.Snapshot(*commit);
  if (!std::filesystem::is_directory(snapshot, error)) return NotFound("not in the cache (no {})", snapshot);
  const std::vector<std::string> missing = MissingFiles(snapshot, what);
  if (!missing.empty()) return NotFound("only a part of it is in the cache: {} lacks {}", snapshot, Join(missing));
  return snapshot;
}

}  // namespace

Status RunPull(const PullOptions& options) {
  KVASIR_ASSIGN_OR_RETURN(const RepoName name, ParseRepoName(options.model, options.revision));
  KVASIR_ASSIGN_OR_RETURN(const HubSettings settings, Settings(options.download_dir));
  const auto start = Time::now();
  KVASIR_ASSIGN_OR_RETURN(const Pulled pulled,
                          PullShowing(settings, name, options.text_only ? PullWhat::kText : PullWhat::kModel, {}));
  std::fprintf(stderr, "%s: commit %s, %zu files, %s (%s fetched in %.1f s)\n", name.Text().c_str(), pulled.commit.c_str(),
               pulled.files, FormatBytes(double(pulled.bytes)).c_str(), FormatBytes(double(pulled.fetched_bytes)).c_str(),
               std::chrono::duration<double>(Time::now() - start).count());
  std::printf("%s\n", pulled.path.c_str());
  return OkStatus();
}

StatusOr<std::string> FindModelFolder(const ModelSource& source, const std::function<bool()>& keep_going) {
  std::error_code error;
  if (std::filesystem::is_directory(source.model, error)) {
    if (source.revision.empty()) return source.model;
    return InvalidArgument("--revision {}: {} is a folder, which has no revisions: leave the flag out", source.revision,
                           source.model);
  }
  if (std::filesystem::exists(source.model, error))
    return InvalidArgument("--model {}: is a file; give the folder that holds config.json and *.safetensors", source.model);
  const auto name = ParseRepoName(source.model, source.revision);
  if (!name.ok()) return NotFound("--model {}: no such folder; and {}", source.model, Message(name.status()));
  KVASIR_ASSIGN_OR_RETURN(const HubSettings settings, Settings(source.download_dir));
  auto found = FindInCache(settings, *name, source.what);
  if (found.ok()) return found;
  const std::string looked =
      fmt::format("--model {}: no such folder here; as a model of a hub: {}", source.model, Message(found.status()));
  if (settings.offline)
    return NotFound(
        "{}; it is not pulled because {} is set: unset it, or run 'kvasir pull {}' where there is a network and bring the cache "
        "here",
        looked, settings.offline_variable, name->Text());
  if (!source.pull) return NotFound("{}; run 'kvasir pull {}', or leave out --no-pull", looked, name->Text());
  auto pulled = PullShowing(settings, *name, source.what, keep_going);
  if (pulled.ok()) return pulled->path;
  return Status(pulled.status().code(), fmt::format("{}; pulling it failed: {}", looked, Message(pulled.status())));
}

Status ResolveModel(EngineOptions* options, const std::function<bool()>& keep_going) {
  KVASIR_ASSIGN_OR_RETURN(
      options->model,
      FindModelFolder(
          {.model = options->model, .revision = options->revision, .download_dir = options->download_dir, .pull = options->pull},
          keep_going));
  return OkStatus();
}

}  // namespace kvasir
