//! The processors' time: others first.

use rustix::process::{Pid, getpriority_process, setpriority_process};

/// How far back voltar steps, of 19 (`setpriority(2)`): others get 28 times its share of a processor that
/// both want, and it all that they leave.
const NICE: i32 = 15;
/// The process's threads (`proc(5)`).
const THREADS: &str = "/proc/self/task";

/// Has all threads of this process, and those they start, give way to others on the processors: to the guests
/// whose disks are read. What is behind already stays there. Best effort: without it a backup is as right.
pub fn step_back() {
    let threads = std::fs::read_dir(THREADS).into_iter().flatten();
    let ids = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    for id in ids.filter_map(Pid::from_raw) {
        // A thread that has ended meanwhile, or a system that does not let us.
        if getpriority_process(Some(id)).is_ok_and(|nice| nice < NICE) {
            let _ = setpriority_process(Some(id), NICE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> i32 {
        getpriority_process(None).unwrap()
    }

    #[test]
    fn all_threads_step_back_and_those_they_start() {
        let (begun, waits) = std::sync::mpsc::channel::<()>();
        let earlier = std::thread::spawn(move || {
            let _ = waits.recv();
            nice()
        });
        // The time until a thread is listed.
        while std::fs::read_dir(THREADS).unwrap().count() < 2 {
            std::thread::yield_now();
        }
        step_back();
        drop(begun);
        let later = std::thread::spawn(nice);
        let found = [nice(), earlier.join().unwrap(), later.join().unwrap()];
        assert!(found.iter().all(|nice| *nice >= NICE), "{found:?}");
    }
}
