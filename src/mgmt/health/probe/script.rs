//! Scripts: a program's exit status decides, as keepalived's MISC_CHECK defines it.

use super::{Failure, Subject};
use crate::mgmt::health::route::Route;
use std::process::Stdio;
use tokio::process::Command;
use tokio::sync::Semaphore;

/// Programs that run at the same time; the others wait, within their timeout.
static RUNNING: Semaphore = Semaphore::const_new(64);

/// A program and its arguments; it is run without a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptProbe {
    pub program: String,
    pub arguments: Vec<String>,
}

impl ScriptProbe {
    /// Runs it; it is killed if this is dropped. Exit status 0 is up, 1 is down, 2 to 255 is up
    /// with the weight two less.
    pub(super) async fn run(
        &self,
        route: Route,
        subject: &Subject<'_>,
    ) -> Result<(String, Option<u16>), Failure> {
        let not_checked = |why: String| Failure::NotChecked(why);
        let turn = RUNNING.acquire().await;
        let _turn = turn.map_err(|why| not_checked(why.to_string()))?;
        let status = Command::new(&self.program)
            .args(&self.arguments)
            .env("EVENKEEL_SERVICE", subject.service)
            .env("EVENKEEL_BACKEND", subject.backend)
            .env("EVENKEEL_ADDRESS", route.backend().to_string())
            .env("EVENKEEL_PORT", route.target().port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await
            .map_err(|why| not_checked(format!("cannot run {}: {why}", self.program)))?;
        match status.code() {
            Some(0) => Ok(("exit status 0".into(), None)),
            Some(code @ 2..=255) => {
                let weight = u16::try_from(code - 2).unwrap_or(0);
                Ok((format!("exit status {code}, weight {weight}"), Some(weight)))
            }
            Some(code) => Err(Failure::Answer(format!("exit status {code}"))),
            None => Err(Failure::Answer(format!("ended by {status}"))),
        }
    }
}
