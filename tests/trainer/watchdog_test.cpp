// Watchdogs of real processes, which are stopped, killed, slow, or wait for each other for ever.
#include "trainer/ranks/watchdog.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace sala {
namespace {

constexpr double kTimeout = 0.4;  // seconds

void rest(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

// One process per rank; what they say comes together.
class Ranks {
 public:
  // `life` runs in each rank beside its watchdog; the rank ends well when it returns.
  Ranks(int size, const std::function<void(int rank)>& life, double stuck = 1800) : stuck_(stuck) {
    Watchdog first(0, size, "host0", kTimeout, stuck_);
    const std::string where = first.listen(/*one_host=*/true);  // inherited by rank 0 alone
    EXPECT_EQ(pipe(output_), 0);
    for (int rank = 0; rank < size; ++rank) {
      const pid_t process = fork();
      if (process == 0) {
        dup2(output_[1], STDERR_FILENO);
        live(rank, size, where, rank == 0 ? &first : nullptr, life);
      }
      processes_.push_back(process);
    }
    close(output_[1]);
  }
  ~Ranks() {
    close(output_[0]);
    for (const pid_t process : processes_) kill(process, SIGKILL);
    for (const pid_t process : processes_) waitpid(process, nullptr, 0);
  }

  pid_t process(int rank) const { return processes_[static_cast<size_t>(rank)]; }

  // Exit code of a rank; the negative signal that ended it; -1000 when it runs on.
  int end_of(int rank, double within) {
    for (double waited = 0; waited < within; waited += 0.02, rest(0.02)) {
      int status = 0;
      if (waitpid(process(rank), &status, WNOHANG) != process(rank)) continue;
      return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }
    return -1000;
  }

  std::string said() {
    fcntl(output_[0], F_SETFL, O_NONBLOCK);
    char text[4096];
    for (ssize_t n = 0; (n = read(output_[0], text, sizeof text)) > 0;) said_.append(text, n);
    return said_;
  }

 private:
  [[noreturn]] void live(int rank, int size, const std::string& where, Watchdog* first,
                         const std::function<void(int)>& life) {
    alarm(20);
    {
      std::unique_ptr<Watchdog> own;
      if (!first) {
        own =
            std::make_unique<Watchdog>(rank, size, "host" + std::to_string(rank), kTimeout, stuck_);
        own->connect(where);
      }
      Watchdog& watchdog = first ? *first : *own;
      if (first) first->take_in();
      watchdog.start([](ActivityReport&) {});
      life(rank);
      if (first) first->~Watchdog();
    }
    _exit(0);
  }

  const double stuck_;
  std::vector<pid_t> processes_;
  int output_[2] = {-1, -1};
  std::string said_;
};

void in_training(int rank) {
  Activity::here().at("distill", 40 + rank);
  const Doing doing(rank == 0 ? "all_gather" : "reading training data",
                    rank == 0 ? Doing::kWait : Doing::kWork);
  rest(15);
}

TEST(Watchdog, AStoppedRankIsNamedWithWhatItDidAndAllEnd) {
  Ranks ranks(3, in_training);
  rest(0.4);
  kill(ranks.process(2), SIGSTOP);
  EXPECT_EQ(ranks.end_of(0, 5), 1);
  EXPECT_EQ(ranks.end_of(1, 5), 1);
  const std::string said = ranks.said();
  for (const char* part : {"rank 2 on host2", "stage distill, step 42", "reading training data",
                           "no sign of life", "rank 0 on host0", "all_gather"}) {
    EXPECT_NE(said.find(part), std::string::npos) << part << "\n" << said;
  }
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
}

TEST(Watchdog, AStoppedRankZeroIsNamedByTheOthers) {
  Ranks ranks(2, in_training);
  rest(0.4);
  kill(ranks.process(0), SIGSTOP);
  EXPECT_EQ(ranks.end_of(1, 5), 1);
  const std::string said = ranks.said();
  EXPECT_NE(said.find("rank 0 on host0 (stage distill, step 40, in all_gather"), std::string::npos)
      << said;
}

TEST(Watchdog, ADeadRankIsNamedAtOnce) {
  Ranks ranks(2, in_training);
  rest(0.4);
  kill(ranks.process(1), SIGKILL);
  EXPECT_EQ(ranks.end_of(0, 5), 1);
  EXPECT_NE(ranks.said().find("rank 1 on host1 (stage distill, step 41"), std::string::npos);
  EXPECT_NE(ranks.said().find("has died"), std::string::npos) << ranks.said();
}

TEST(Watchdog, ASlowRankIsToldOfAndWaitedFor) {
  Ranks ranks(2, [](int rank) {
    if (rank == 0) {
      const Doing doing("barrier", Doing::kWait);
      rest(4 * kTimeout);
    } else {
      const Doing doing("reading the source", Doing::kWork);
      rest(4 * kTimeout);
    }
  });
  EXPECT_EQ(ranks.end_of(0, 10), 0);
  EXPECT_EQ(ranks.end_of(1, 10), 0);
  const std::string said = ranks.said();
  EXPECT_NE(said.find("1 rank(s) wait for rank 1 on host1"), std::string::npos) << said;
  EXPECT_NE(said.find("reading the source"), std::string::npos) << said;
}

TEST(Watchdog, ARankThatIsStuckEndsTheJob) {
  const auto life = [](int rank) {
    Activity::here().at("train", 7);
    const Doing doing(rank == 0 ? "all_gather" : "computing",
                      rank == 0 ? Doing::kWait : Doing::kWork);
    rest(15);
  };
  Ranks ranks(2, life, /*stuck=*/1.5);
  EXPECT_EQ(ranks.end_of(0, 5), 1);
  EXPECT_EQ(ranks.end_of(1, 5), 1);
  const std::string said = ranks.said();
  EXPECT_NE(
      said.find("1 rank(s) wait, and nothing has moved for 2 s (SALA_STUCK_SECONDS): rank 1 on "
                "host1 (stage train, step 7, in computing"),
      std::string::npos)
      << said;
}

// What rank 0 does alone at the start: it neither begins nor ends anything for minutes.
TEST(Watchdog, ARankThatReadsAFileIsNotStuck) {
  const auto life = [](int rank) {
    const Doing doing(rank == 0 ? "reading" : "barrier", rank == 0 ? Doing::kWork : Doing::kWait);
    const int file = open("/dev/zero", O_RDONLY);
    std::string block(64 << 10, ' ');
    for (double passed = 0; passed < 2.5; passed += 0.01, rest(0.01)) {
      if (rank == 0 && read(file, block.data(), block.size()) < 0) _exit(9);
    }
  };
  Ranks ranks(2, life, /*stuck=*/1);
  EXPECT_EQ(ranks.end_of(0, 10), 0) << ranks.said();
  EXPECT_EQ(ranks.end_of(1, 10), 0) << ranks.said();
}

TEST(Watchdog, RanksThatAllWaitForEachOtherEnd) {
  Ranks ranks(2, [](int rank) {
    const Doing doing(rank == 0 ? "barrier" : "all_reduce_sum", Doing::kWait);
    rest(15);
  });
  EXPECT_EQ(ranks.end_of(0, 5), 1);
  EXPECT_EQ(ranks.end_of(1, 5), 1);
  const std::string said = ranks.said();
  EXPECT_NE(said.find("in barrier"), std::string::npos) << said;
  EXPECT_NE(said.find("in all_reduce_sum"), std::string::npos) << said;
}

TEST(Watchdog, AJobStoppedAndContinuedAsAWholeGoesOn) {
  Ranks ranks(2, [](int) { rest(1.8); });
  rest(0.3);
  kill(ranks.process(0), SIGSTOP);
  kill(ranks.process(1), SIGSTOP);
  rest(2 * kTimeout);
  kill(ranks.process(1), SIGCONT);
  kill(ranks.process(0), SIGCONT);
  EXPECT_EQ(ranks.end_of(0, 10), 0);
  EXPECT_EQ(ranks.end_of(1, 10), 0);
  EXPECT_EQ(ranks.said(), "");
}

TEST(Watchdog, MoreRanksThanMayWaitFindRankZero) {
  Listener listener(/*loopback_only=*/true, /*most_waiting=*/1);
  std::atomic<int> num_connected = 0;
  std::vector<std::thread> ranks;
  for (int i = 0; i < 12; ++i) {
    ranks.emplace_back([&] {
      const auto socket = connect_to(listener.addresses(), listener.port(), 30);
      ++num_connected;
    });
  }
  rest(3.5);  // longer than one try
  EXPECT_LT(num_connected, 12);
  std::vector<std::unique_ptr<LineSocket>> accepted;
  for (double waited = 0; waited < 30 && num_connected < 12; waited += 0.01, rest(0.01)) {
    while (auto socket = listener.accept()) accepted.push_back(std::move(socket));
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(num_connected, 12);
}

TEST(Watchdog, TheTimeoutIsANumberOrAnError) {
  unsetenv("SALA_WATCHDOG_SECONDS");
  EXPECT_GT(watchdog_timeout(), 0);
  for (const char* good : {"0", "2.5", "600"}) {
    setenv("SALA_WATCHDOG_SECONDS", good, 1);
    EXPECT_EQ(watchdog_timeout(), std::stod(good));
  }
  for (const char* bad : {"", "soon", "-1", "1m", "nan", "inf"}) {
    setenv("SALA_WATCHDOG_SECONDS", bad, 1);
    EXPECT_THROW(watchdog_timeout(), std::runtime_error) << bad;
  }
  unsetenv("SALA_WATCHDOG_SECONDS");
  EXPECT_GT(stuck_timeout(), 600);
  setenv("SALA_STUCK_SECONDS", "half an hour", 1);
  EXPECT_THROW(stuck_timeout(), std::runtime_error);
  unsetenv("SALA_STUCK_SECONDS");
}

}  // namespace
}  // namespace sala
