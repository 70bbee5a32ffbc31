//! Finding a guest's process, and being sure that it is the one.

use std::fs;
use std::io;
use std::path::Path;

use replicator::io::pidfd::PidFd;

use crate::guests::ProcessId;

/// Which process is a guest's: it says so on its command line, and so does its disk.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    name: Vec<u8>,
    socket: Vec<u8>,
}

impl Mark {
    /// Of a libvirt domain that has the disk behind the NBD socket.
    pub(super) fn new(domain: &str, socket: &Path) -> Self {
        // QEMU doubles commas in names.
        let domain = domain.replace(',', ",,");
        Self {
            name: format!("guest={domain}").into_bytes(),
            socket: socket.as_os_str().as_encoded_bytes().to_vec(),
        }
    }

    fn is_on(&self, command_line: &[u8]) -> bool {
        let named = command_line.split(|byte| *byte == 0).any(|argument| {
            let rest = argument.strip_prefix(&self.name[..]);
            rest.is_some_and(|rest| rest.first().is_none_or(|next| *next == b','))
        });
        let has_disk = command_line
            .windows(self.socket.len())
            .any(|window| window == self.socket);
        named && has_disk
    }

    /// The process, if there is one. It is held before it is believed: a number that was given
    /// anew in between is noticed.
    pub(super) fn find(&self) -> io::Result<Option<(ProcessId, PidFd)>> {
        for entry in fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            // Whatever ends meanwhile is not the one.
            if !command_line(pid).is_ok_and(|line| self.is_on(&line)) {
                continue;
            }
            let Ok(held) = PidFd::open(pid) else { continue };
            let start = start_of(pid);
            let still = command_line(pid).is_ok_and(|line| self.is_on(&line));
            if let (Ok(start), true, false) = (start, still, held.has_ended()) {
                return Ok(Some((ProcessId { pid, start }, held)));
            }
        }
        Ok(None)
    }
}

/// Holds the very process that was found earlier, `None` if it has ended.
pub(super) fn hold(id: ProcessId) -> Option<PidFd> {
    let held = PidFd::open(id.pid).ok()?;
    let same = start_of(id.pid).is_ok_and(|start| start == id.start);
    (same && !held.has_ended()).then_some(held)
}

fn command_line(pid: i32) -> io::Result<Vec<u8>> {
    fs::read(format!("/proc/{pid}/cmdline"))
}

/// When it was started: the 22nd field of its `stat`, counted after the name, which may hold
/// anything.
fn start_of(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let start = after_name.split_whitespace().nth(19);
    start
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    const SOCKET: &str = "/run/test-of-marks/vm-web.sock";

    #[test]
    fn a_guest_is_its_name_and_its_disk() {
        let mark = Mark::new("web", Path::new(SOCKET));
        let line = |name: &str, path: &str| {
            format!("qemu\0-name\0{name}\0-blockdev\0{{\"path\":\"{path}\"}}\0").into_bytes()
        };
        assert!(mark.is_on(&line("guest=web,debug-threads=on", SOCKET)));
        assert!(mark.is_on(&line("guest=web", SOCKET)));
        assert!(!mark.is_on(&line("guest=web2", SOCKET)));
        assert!(!mark.is_on(&line("guest=web", "/run/other.sock")));
    }

    #[test]
    fn a_process_is_found_and_not_mistaken_for_its_successor() {
        let domain = format!("mark-{}", std::process::id());
        let mark = Mark::new(&domain, Path::new(SOCKET));
        assert!(mark.find().unwrap().is_none());
        let mut child = Command::new("sleep")
            .arg0(format!("guest={domain}"))
            .args(["1000"])
            .env("UNUSED", "1")
            .spawn()
            .unwrap();
        // Its disk is not on its command line.
        assert!(mark.find().unwrap().is_none());
        let pid = i32::try_from(child.id()).unwrap();
        let id = ProcessId {
            pid,
            start: start_of(pid).unwrap(),
        };
        assert!(hold(id).is_some());
        let later = ProcessId {
            start: id.start + 1,
            ..id
        };
        assert!(hold(later).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(hold(id).is_none());
    }
}
