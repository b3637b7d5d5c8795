//! QEMU's monitor: all that it says, to a client that asks for disks.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use voltar_engine::qemu::monitor::Monitor;
use voltar_engine::qemu::vm;

/// `data` is what QEMU says from its greeting to its end.
pub fn replies(data: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    // What does not fit into the socket is not said.
    theirs.set_nonblocking(true).unwrap();
    let _ = theirs.write_all(data);
    theirs.shutdown(Shutdown::Write).unwrap();
    let Ok(mut monitor) = Monitor::on(ours, "fuzz") else { return };
    let Ok((disks, _)) = vm::disks(&mut monitor) else { return };
    for disk in &disks {
        for name in [&disk.name, &disk.device, &disk.root, &disk.node, &disk.format] {
            assert!(!name.is_empty() && !name.contains(char::is_control), "{disk:?}");
        }
        assert_eq!(disks.iter().filter(|other| other.name == disk.name).count(), 1);
        vm::iothread(&mut monitor, &disk.device);
    }
    vm::agent_socket(&mut monitor);
    let volumes: Vec<_> = disks.into_iter().map(|disk| (disk.name.clone(), disk)).collect();
    let definition = vm::definition(&mut monitor, &[], &volumes);
    assert_eq!(definition["disks"].as_array().unwrap().len(), volumes.len());
}
