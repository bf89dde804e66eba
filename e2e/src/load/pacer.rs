//! Sleeps that end when they should: tokio's timer counts milliseconds, which is longer than what is measured here.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use weir_env::clock::Clock;

/// One timer of the kernel.
#[derive(Debug)]
pub(super) struct Pacer {
    timer: AsyncFd<OwnedFd>,
    clock: Clock,
}

impl Pacer {
    pub(super) fn new(clock: Clock) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "its replacement is unsafe, for types that may change their descriptor"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer, clock })
    }

    /// Waits until `at`; may end earlier after an earlier wait was given up. Cancel-safe.
    pub(super) async fn sleep_until(&self, at: Instant) -> io::Result<()> {
        let wait = at.saturating_duration_since(self.clock.now());
        if wait.is_zero() {
            return Ok(());
        }
        let value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let never_again = Timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = Itimerspec { it_interval: never_again, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)?;
        // Setting it anew is what resets a timer; there is no need to read it.
        self.timer.readable().await?.clear_ready();
        Ok(())
    }
}
