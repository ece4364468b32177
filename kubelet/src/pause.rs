//! The pause program: the process that holds a pod's namespaces open.
//!
//! It is a static x86-64 ELF file of some two hundred bytes, put together here, so that a node needs neither a
//! registry nor a compiler. It must do three things: do nothing cheaply; reap orphans, because it is process 1 when a
//! pod shares its process namespace; and leave at once on SIGTERM. Process 1 ignores signals whose disposition is the
//! default, but a *blocked* signal is never ignored. So the program blocks SIGTERM, SIGINT and SIGCHLD and takes them
//! with `rt_sigtimedwait`, which needs neither a handler nor a stack.
//!
//! With an argument it first leaves the network namespace it was started in for one of its own, and gives up all its
//! capabilities; when it cannot, it ends with 1. An engine that makes the namespace itself starts another program inside it
//! first, which takes longer than everything else about a sandbox.

/// Tag under which the image is imported into the engine.
pub const IMAGE: &str = "skiff/pause:2";
/// Path of the program in the image.
pub const PATH: &str = "/pause";
/// Argument with which it makes its own network namespace. It must have `CAP_SYS_ADMIN` then, and has nothing afterwards.
pub const OWN_NETWORK: &str = "own-network";

const LOAD_ADDRESS: u64 = 0x40_0000;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

const SIGINT: u32 = 2;
const SIGTERM: u32 = 15;
const SIGCHLD: u8 = 17;

const SYS_RT_SIGPROCMASK: u8 = 14;
const SYS_EXIT: u8 = 60;
const SYS_WAIT4: u8 = 61;
const SYS_CAPSET: u8 = 126;
const SYS_RT_SIGTIMEDWAIT: u8 = 128;
const SYS_UNSHARE: u32 = 272;

const CLONE_NEWNET: u32 = 0x4000_0000;
/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits, in two halves.
const CAPABILITIES: u32 = 0x2008_0522;

/// The signals the program waits for, in the kernel's form: bit n-1 stands for signal n.
const SIGNALS: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);

/// The program as an ELF file.
pub fn program() -> Vec<u8> {
    let code = code();
    let size = (ELF_HEADER + PROGRAM_HEADER + code.len()) as u64;
    let entry = LOAD_ADDRESS + (ELF_HEADER + PROGRAM_HEADER) as u64;
    let mut file = Vec::with_capacity(size as usize);
    // e_ident: magic, 64 bits, little endian, version 1, System V.
    file.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(2u16.to_le_bytes()); // e_type: executable
    file.extend(62u16.to_le_bytes()); // e_machine: x86-64
    file.extend(1u32.to_le_bytes()); // e_version
    file.extend(entry.to_le_bytes());
    file.extend((ELF_HEADER as u64).to_le_bytes()); // e_phoff
    file.extend(0u64.to_le_bytes()); // e_shoff: no sections
    file.extend(0u32.to_le_bytes()); // e_flags
    file.extend((ELF_HEADER as u16).to_le_bytes());
    file.extend((PROGRAM_HEADER as u16).to_le_bytes());
    file.extend(1u16.to_le_bytes()); // e_phnum
    file.extend([0; 6]); // e_shentsize, e_shnum, e_shstrndx
    // One segment: the whole file, readable and executable.
    file.extend(1u32.to_le_bytes()); // p_type: load
    file.extend(5u32.to_le_bytes()); // p_flags: read, execute
    file.extend(0u64.to_le_bytes()); // p_offset
    file.extend(LOAD_ADDRESS.to_le_bytes()); // p_vaddr
    file.extend(LOAD_ADDRESS.to_le_bytes()); // p_paddr
    file.extend(size.to_le_bytes()); // p_filesz
    file.extend(size.to_le_bytes()); // p_memsz
    file.extend(0x1000u64.to_le_bytes()); // p_align
    file.extend(code);
    file
}

/// A tar archive with the program as its only file: the image's only layer.
pub fn layer() -> Vec<u8> {
    let program = program();
    let mut header = [0u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, PATH.trim_start_matches('/'));
    put(100, "0000755");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", program.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut tar = header.to_vec();
    tar.extend(&program);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// The instructions, followed by what they point to.
fn code() -> Vec<u8> {
    assembled().finish()
}

fn assembled() -> Assembler {
    let mut asm = Assembler::default();
    asm.emit(&[0x48, 0x83, 0x3c, 0x24, 1]); // cmp qword [rsp], 1: how many arguments, the name among them
    asm.emit(&[0x7e]); // jle block
    asm.rel8("block");
    asm.emit(&[0xb8]); // unshare(CLONE_NEWNET)
    asm.emit(&SYS_UNSHARE.to_le_bytes());
    asm.emit(&[0xbf]); // mov edi, flags
    asm.emit(&CLONE_NEWNET.to_le_bytes());
    asm.emit(&[0x0f, 0x05]);
    asm.emit(&[0x85, 0xc0]); // test eax, eax
    asm.emit(&[0x75]); // jnz fail
    asm.rel8("fail");
    asm.emit(&[0xb8, SYS_CAPSET, 0, 0, 0]); // capset(own, none)
    asm.emit(&[0x48, 0x8d, 0x3d]); // lea rdi, [rip + own]
    asm.rel32("own");
    asm.emit(&[0x48, 0x8d, 0x35]); // lea rsi, [rip + none]
    asm.rel32("none");
    asm.emit(&[0x0f, 0x05]);
    asm.emit(&[0x85, 0xc0]);
    asm.emit(&[0x74]); // jz block
    asm.rel8("block");
    asm.label("fail"); // exit(1)
    asm.emit(&[0xb8, SYS_EXIT, 0, 0, 0]);
    asm.emit(&[0xbf, 1, 0, 0, 0]);
    asm.emit(&[0x0f, 0x05]);
    asm.label("block");
    asm.emit(&[0x48, 0x8d, 0x1d]); // lea rbx, [rip + set]
    asm.rel32("set");
    // rt_sigprocmask(SIG_BLOCK = 0, set, NULL, 8)
    asm.emit(&[0xb8, SYS_RT_SIGPROCMASK, 0, 0, 0]); // mov eax, nr
    asm.emit(&[0x31, 0xff]); // xor edi, edi
    asm.emit(&[0x48, 0x89, 0xde]); // mov rsi, rbx
    asm.emit(&[0x31, 0xd2]); // xor edx, edx
    asm.emit(&[0x41, 0xba, 8, 0, 0, 0]); // mov r10d, 8
    asm.emit(&[0x0f, 0x05]); // syscall
    asm.label("wait"); // rt_sigtimedwait(set, NULL, NULL, 8)
    asm.emit(&[0xb8, SYS_RT_SIGTIMEDWAIT, 0, 0, 0]);
    asm.emit(&[0x48, 0x89, 0xdf]); // mov rdi, rbx
    asm.emit(&[0x31, 0xf6]); // xor esi, esi
    asm.emit(&[0x31, 0xd2]); // xor edx, edx
    asm.emit(&[0x41, 0xba, 8, 0, 0, 0]); // mov r10d, 8
    asm.emit(&[0x0f, 0x05]);
    asm.emit(&[0x83, 0xf8, SIGCHLD]); // cmp eax, SIGCHLD
    asm.emit(&[0x74]); // je reap
    asm.rel8("reap");
    asm.emit(&[0x85, 0xc0]); // test eax, eax
    asm.emit(&[0x78]); // js wait: interrupted
    asm.rel8("wait");
    asm.emit(&[0xb8, SYS_EXIT, 0, 0, 0]); // exit(0)
    asm.emit(&[0x31, 0xff]);
    asm.emit(&[0x0f, 0x05]);
    asm.label("reap"); // wait4(-1, NULL, WNOHANG = 1, NULL) until nothing is left
    asm.emit(&[0xb8, SYS_WAIT4, 0, 0, 0]);
    asm.emit(&[0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff]); // mov rdi, -1
    asm.emit(&[0x31, 0xf6]);
    asm.emit(&[0xba, 1, 0, 0, 0]); // mov edx, 1
    asm.emit(&[0x45, 0x31, 0xd2]); // xor r10d, r10d
    asm.emit(&[0x0f, 0x05]);
    asm.emit(&[0x85, 0xc0]); // test eax, eax
    asm.emit(&[0x7f]); // jg reap
    asm.rel8("reap");
    asm.emit(&[0xeb]); // jmp wait
    asm.rel8("wait");
    asm.label("own"); // this process
    asm.emit(&CAPABILITIES.to_le_bytes());
    asm.emit(&0u32.to_le_bytes());
    asm.label("none"); // effective, permitted and inheritable, twice
    asm.emit(&[0; 24]);
    asm.label("set");
    asm.emit(&SIGNALS.to_le_bytes());
    asm
}

/// Bytes with labels, and the places where distances to labels go.
#[derive(Default)]
struct Assembler {
    bytes: Vec<u8>,
    labels: Vec<(&'static str, usize)>,
    holes: Vec<(usize, usize, &'static str)>,
}

impl Assembler {
    fn emit(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    fn label(&mut self, name: &'static str) {
        self.labels.push((name, self.bytes.len()));
    }

    fn rel8(&mut self, label: &'static str) {
        self.holes.push((self.bytes.len(), 1, label));
        self.bytes.push(0);
    }

    fn rel32(&mut self, label: &'static str) {
        self.holes.push((self.bytes.len(), 4, label));
        self.bytes.extend([0; 4]);
    }

    /// Fills the holes. Distances count from the end of the hole; every one here fits (a test looks).
    fn finish(mut self) -> Vec<u8> {
        for (at, width, label) in std::mem::take(&mut self.holes) {
            let distance = self.distance(at + width, label);
            self.bytes[at..at + width].copy_from_slice(&distance.to_le_bytes()[..width]);
        }
        self.bytes
    }

    fn distance(&self, from: usize, label: &str) -> i64 {
        let target = self.labels.iter().find(|(name, _)| *name == label).map_or(from, |(_, to)| *to);
        target as i64 - from as i64
    }
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    #[test]
    fn every_label_used_is_defined_and_near() {
        let asm = assembled();
        for (at, width, label) in &asm.holes {
            assert!(asm.labels.iter().any(|(name, _)| name == label), "{label} is nowhere");
            let distance = asm.distance(at + width, label);
            assert!(*width == 4 || i8::try_from(distance).is_ok(), "a short jump to {label} would be {distance} bytes");
        }
        assert!(code().ends_with(&SIGNALS.to_le_bytes()));
    }

    /// Kills the program when the test fails: it would outlive the test otherwise.
    struct Running(std::process::Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn start(dir: &std::path::Path, arguments: &[&str]) -> Running {
        let path = dir.join("pause");
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Running(Command::new(&path).args(arguments).spawn().unwrap())
    }

    /// With its argument it has another network than who started it, and no capability; without the right to that it ends.
    #[test]
    fn makes_its_own_network() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = start(dir.path(), &[OWN_NETWORK]);
        if !nix::unistd::Uid::effective().is_root() {
            assert_eq!(child.0.wait().unwrap().code(), Some(1));
            return;
        }
        let of = |who: &str, what: &str| std::path::PathBuf::from(format!("/proc/{who}/{what}"));
        let pid = child.0.id().to_string();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !std::fs::read_to_string(of(&pid, "status")).unwrap().contains("CapPrm:\t0000000000000000\n") {
            assert!(std::time::Instant::now() < deadline, "it never gave its capabilities up");
            std::thread::yield_now();
        }
        let network = |who: &str| std::fs::read_link(of(who, "ns/net")).unwrap();
        assert_ne!(network(&pid), network("self"));
        assert!(child.0.try_wait().unwrap().is_none());
    }

    /// Runs the bytes for real: they wait, SIGCHLD does not end them, and SIGTERM ends them with status 0.
    #[test]
    fn waits_and_leaves_on_sigterm() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = start(dir.path(), &[]);
        let pid = nix::unistd::Pid::from_raw(child.0.id() as i32);
        let waits = || {
            let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
            call.starts_with(&format!("{SYS_RT_SIGTIMEDWAIT} "))
        };
        let until = |holds: &dyn Fn() -> bool, what: &str| {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while !holds() {
                assert!(std::time::Instant::now() < deadline, "the program never {what}");
                std::thread::yield_now();
            }
        };
        until(&waits, "waited for a signal");
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCHLD).unwrap();
        until(&waits, "went back to waiting");
        assert!(child.0.try_wait().unwrap().is_none());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(0));
    }

    #[test]
    fn layer_is_a_tar_with_a_right_checksum() {
        let tar = layer();
        assert_eq!(tar.len() % 512, 0);
        let stored = u32::from_str_radix(std::str::from_utf8(&tar[148..154]).unwrap(), 8).unwrap();
        let sum: u32 =
            tar[..512].iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        assert_eq!(stored, sum);
    }
}
