//! The Unix sockets of the interface, and the lock that keeps a second instance away. The lock is
//! held from before the devices are opened until the process ends, so that whoever holds it may
//! remove the sockets that a killed predecessor left.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::UnixListener;

/// Why the sockets are not ours.
#[derive(Debug, Error)]
pub enum SocketError {
    #[error("another evenkeel{} uses the socket {}; stop it, or set management.socket to another path", pid_text(.pid), .path.display())]
    SecondInstance { path: PathBuf, pid: Option<u32> },
    #[error("the socket path {} is longer than the system takes; set management.socket to at most {most} bytes", .path.display())]
    TooLong { path: PathBuf, most: usize },
    #[error("{} is there and is no socket; remove it, or set management.socket to another path", .path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot {action} {}: {error}; check management.socket and that you may write there", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        error: io::Error,
    },
}

fn pid_text(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// The sockets and their lock. Dropping it removes all three files.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    all: StdListener,
    read_only: StdListener,
    _lock: Lock,
}

/// Who may do everything: the owner and the group of the socket.
const MODE_ALL: u32 = 0o660;
/// Who may look: everyone on the machine who may enter the directory.
const MODE_READ_ONLY: u32 = 0o666;
/// `sun_path` less its terminating zero.
const LONGEST: usize = 107;

/// Where the read-only socket stands: beside the other, `evenkeel.sock` making `evenkeel.ro.sock`.
pub fn read_only_path(path: &Path) -> PathBuf {
    path.with_extension(match path.extension() {
        Some(extension) => format!("ro.{}", extension.to_string_lossy()),
        None => "ro".to_owned(),
    })
}

impl Socket {
    /// Takes the lock, removes what a predecessor left and listens. The directory is made if need be.
    pub fn claim(path: &Path) -> Result<Socket, SocketError> {
        let read_only = read_only_path(path);
        if read_only.as_os_str().len() > LONGEST {
            let most = LONGEST - ".ro".len();
            return Err(SocketError::TooLong {
                path: path.to_owned(),
                most,
            });
        }
        if let Some(directory) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        }
        let lock = Lock::take(path)?;
        let all = listen(path, MODE_ALL)?;
        let read_only =
            listen(&read_only, MODE_READ_ONLY).inspect_err(|_| drop(fs::remove_file(path)))?;
        Ok(Socket {
            path: path.to_owned(),
            all,
            read_only,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The two listening sockets for the runtime that calls this: for all requests, and for those
    /// that only read.
    pub(super) fn listeners(&self) -> io::Result<(UnixListener, UnixListener)> {
        let listener = |std: &StdListener| {
            std.set_nonblocking(true)?;
            UnixListener::from_std(std.try_clone()?)
        };
        Ok((listener(&self.all)?, listener(&self.read_only)?))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nobody is told: the next start removes them just as well. The lock goes last, by itself.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(read_only_path(&self.path));
    }
}

fn listen(path: &Path, mode: u32) -> Result<StdListener, SocketError> {
    use std::os::unix::fs::FileTypeExt as _;
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(path).map_err(io_error("remove the stale socket", path))?;
        }
        Ok(_) => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Err(_) => {}
    }
    let listener = StdListener::bind(path).map_err(io_error("listen on", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(io_error("set the permissions of", path))?;
    Ok(listener)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |error| SocketError::Io {
        action,
        path,
        error,
    }
}

/// An exclusive lock on a file beside the socket, with our process id in it. The system lets go of
/// it when the process ends, however it ends.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    /// Held open for the lock's sake.
    _file: File,
}

impl Lock {
    fn take(socket: &Path) -> Result<Lock, SocketError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(io_error("open the lock", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let pid = read_pid(&mut file);
                    return Err(SocketError::SecondInstance {
                        path: socket.to_owned(),
                        pid,
                    });
                }
                Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
            }
            // A predecessor that just ended removes the file; a lock on a removed file locks nobody
            // out, so take the one that is there now.
            let ours = file.metadata().map(|meta| meta.ino()).ok();
            if ours.is_some() && ours == fs::metadata(&path).map(|meta| meta.ino()).ok() {
                let written = file
                    .set_len(0)
                    .and_then(|()| write!(file, "{}", std::process::id()));
                written.map_err(io_error("write", &path))?;
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
