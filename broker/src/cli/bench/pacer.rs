//! Sleeps that end when they should. Tokio's timer counts milliseconds, which is longer than what is measured here;
//! the kernel's timers are a hundred times finer.

#[cfg(not(target_os = "linux"))]
pub(super) use coarse::Pacer;
#[cfg(target_os = "linux")]
pub(super) use fine::Pacer;

#[cfg(target_os = "linux")]
mod fine {
    use std::io;
    use std::os::fd::OwnedFd;

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use tokio::io::unix::AsyncFd;
    use tokio::time::Instant;
    use weir_env::clock::Clock;

    /// One timer, of the kernel.
    #[derive(Debug)]
    pub(in super::super) struct Pacer {
        timer: AsyncFd<OwnedFd>,
        clock: Clock,
    }

    impl Pacer {
        pub(in super::super) fn new(clock: Clock) -> io::Result<Self> {
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
        pub(in super::super) async fn sleep_until(&self, at: Instant) -> io::Result<()> {
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
}

#[cfg(not(target_os = "linux"))]
mod coarse {
    use std::io;

    use tokio::time::Instant;
    use weir_env::clock::Clock;

    /// Tokio's timer.
    #[derive(Debug)]
    pub(in super::super) struct Pacer;

    impl Pacer {
        pub(in super::super) fn new(_clock: Clock) -> io::Result<Self> {
            Ok(Self)
        }

        /// Waits until `at`. Cancel-safe.
        pub(in super::super) async fn sleep_until(&self, at: Instant) -> io::Result<()> {
            tokio::time::sleep_until(at).await;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weir_env::clock::Clock;

    use super::*;

    #[tokio::test]
    async fn sleeps_end_and_not_before_their_time() {
        let clock = Clock::system();
        let pacer = Pacer::new(clock).unwrap();
        for micros in [0, 50, 3_000, 200] {
            let at = clock.now() + Duration::from_micros(micros);
            pacer.sleep_until(at).await.unwrap();
            assert!(clock.now() >= at);
        }
    }
}
