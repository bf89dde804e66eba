//! `fdatasync` has returned before a commit is reported, and a start has synced what it builds on. Seen from outside: a process that commits is traced, and its
//! system calls must come in the right order.
//!
//! Two processes of this very program, because a tracer waits for every child: the tracer starts the victim, which
//! commits one transaction after another and writes a mark of a certain length before and after each.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use weir_storage::Store;

use crate::embedded::{not_run, open};

const DIR: &str = "WEIR_STORAGE_TEST_TRACED_DIR";
const ROLE: &str = "WEIR_STORAGE_TEST_TRACED_ROLE";
const COMMITS: usize = 20;
/// Lengths of the marks, with their end of line.
const ASKED: u64 = 3_001;
const REPORTED: u64 = 3_003;
const OPENS: u64 = 3_005;
const OPENED: u64 = 3_007;

fn is(role: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|found| found == role)
}

fn start(role: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("sync::{role}"), "--nocapture"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn mark(len: u64) {
    let line = vec![b'.'; usize::try_from(len - 1).unwrap()];
    let mut out = std::io::stdout().lock();
    out.write_all(&[&line[..], b"\n"].concat()).unwrap();
    out.flush().unwrap();
}

/// Does nothing when it isn't the victim.
#[tokio::test]
async fn victim() {
    if !is("victim") {
        return;
    }
    println!("\nready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let store = open(&dir);
    for n in 0..COMMITS {
        let mut tx = store.begin();
        tx.set(&n.to_be_bytes(), &vec![7; 50 + n * 4_000]);
        mark(ASKED);
        tx.commit().await.unwrap();
        mark(REPORTED);
    }
    store.close().await;
    drop(store);
    mark(OPENS);
    let store = open(&dir);
    mark(OPENED);
    store.close().await;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Opens,
    Opened,
    Asked,
    Written,
    Synced,
    Reported,
}

/// Does nothing when it isn't the tracer. Prints `in order`, or why it may not trace.
#[test]
fn tracer() {
    if !is("tracer") {
        return;
    }
    let mut victim = start("victim", Path::new(&std::env::var_os(DIR).unwrap()));
    let mut lines = BufReader::new(victim.stdout.take().unwrap());
    let mut line = String::new();
    while line != "ready\n" {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the victim ended");
    }
    // What the victim writes from now on must go somewhere.
    let drain = std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
    for entry in fs::read_dir(format!("/proc/{}/task", victim.id())).unwrap() {
        let thread = Pid::from_raw(entry.unwrap().file_name().to_str().unwrap().parse().unwrap());
        if let Err(error) = ptrace::seize(thread, options) {
            assert!(matches!(error, Errno::EPERM | Errno::EACCES | Errno::ENOSYS), "{error}");
            println!("\nnot allowed: {error}");
            victim.kill().unwrap();
            victim.wait().unwrap();
            return;
        }
        ptrace::interrupt(thread).unwrap();
    }
    victim.stdin.take().unwrap().write_all(b"go\n").unwrap();
    check(&follow());
    drain.join().unwrap().unwrap();
    // Its end was already seen.
    assert!(victim.wait().is_err());
    println!("\nin order");
}

/// Follows the threads to their end.
fn follow() -> Vec<Seen> {
    let (mut seen, mut inside) = (Vec::new(), BTreeMap::<Pid, bool>::new());
    loop {
        let (thread, signal) = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                let inside = inside.entry(thread).or_default();
                *inside = !*inside;
                seen.extend(see(thread, *inside));
                (thread, None)
            }
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            Ok(WaitStatus::PtraceEvent(thread, ..)) => (thread, None),
            Ok(_) => continue,
            Err(Errno::ECHILD) => return seen,
            Err(error) => panic!("{error}"),
        };
        let signal = signal.filter(|signal| {
            !matches!(signal, nix::sys::signal::Signal::SIGTRAP | nix::sys::signal::Signal::SIGSTOP)
        });
        match ptrace::syscall(thread, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// What a system call says, when it begins or when it has returned.
fn see(thread: Pid, begins: bool) -> Option<Seen> {
    let registers = ptrace::getregs(thread).ok()?;
    let outcome = i64::from_ne_bytes(registers.rax.to_ne_bytes());
    match (registers.orig_rax, begins) {
        // write: the marks, when they begin.
        (1, true) => match registers.rdx {
            ASKED => Some(Seen::Asked),
            REPORTED => Some(Seen::Reported),
            OPENS => Some(Seen::Opens),
            OPENED => Some(Seen::Opened),
            _ => None,
        },
        // pwrite64, when it begins.
        (18, true) => Some(Seen::Written),
        // fsync and fdatasync, when they have succeeded.
        (74 | 75, false) if outcome == 0 => Some(Seen::Synced),
        _ => None,
    }
}

fn check(seen: &[Seen]) {
    let commits: Vec<&[Seen]> = seen.split(|seen| *seen == Seen::Asked).skip(1).collect();
    assert_eq!(commits.len(), COMMITS, "{seen:?}");
    for commit in commits {
        let reported = commit.iter().position(|seen| *seen == Seen::Reported).unwrap();
        let before = &commit[..reported];
        let written = before.iter().position(|seen| *seen == Seen::Written);
        let synced = before.iter().rposition(|seen| *seen == Seen::Synced);
        assert!(written.is_some() && synced > written, "reported before it was on the disk: {commit:?}");
        assert!(!before[synced.unwrap()..].contains(&Seen::Written), "{commit:?}");
    }
    check_open(seen);
}

/// What a start finds may be in memory only. So the last batch is written once more, and synced: its file, the folder of
/// the journal, three of the tree, and the one they are in. Writing the process id into `lock` is no `pwrite64`.
fn check_open(seen: &[Seen]) {
    let [opens, opened] =
        [Seen::Opens, Seen::Opened].map(|mark| seen.iter().position(|seen| *seen == mark).unwrap());
    let written = seen[opens..opened].iter().position(|seen| *seen == Seen::Written);
    let after = &seen[opens + written.expect("nothing is written")..opened];
    assert!(after.iter().filter(|seen| **seen == Seen::Synced).count() >= 3, "{after:?}");
    let synced = seen[opens..opened].iter().filter(|seen| **seen == Seen::Synced).count();
    assert!(synced >= 6, "{synced} syncs");
}

#[test]
fn what_is_reported_and_what_a_start_builds_on_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let tracer = start("tracer", dir.path()).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&tracer.stdout).into_owned();
    assert!(tracer.status.success(), "{text}");
    match text.lines().find(|line| line.starts_with("not allowed")) {
        Some(why) => not_run(&format!("tracing a process is {why}")),
        None => assert!(text.contains("in order"), "{text}"),
    }
}
