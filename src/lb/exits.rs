//! What became of a burst: which of its frames are whose, and the way out that all have in common.
//! Pure; made by workers once a burst.

use crate::arch::unpart;

use super::frame::Frame;
use super::looks::Looks;
use super::{MAX_BURST, Verdict};

/// The way that all of a burst's packets leave which are the worker's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exit {
    pub port: u8,
    /// What all their frames hold.
    pub bytes: u64,
}

/// What became of a burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decided {
    /// Packets that other workers own, a bit for each in the order of arrival. They have been moved
    /// behind the worker's own frames; both are in the order of arrival.
    pub elsewhere: u64,
    /// How many frames are in front of them. Where one of these is handed over as well (a fragment, an
    /// ICMP error, a question), all are where they came in, and none is behind: who is to get several
    /// gets them in their order.
    pub own: usize,
    /// The worker that gets all those behind, where it is one.
    pub owner: Option<u8>,
    /// The way out of the first `own`, where it is one for all.
    pub exit: Option<Exit>,
}

impl Decided {
    /// The same with all frames back where they came in.
    #[cold]
    pub(super) fn as_it_came<F>(
        self,
        frames: &mut [F],
        verdicts: &mut [Verdict; MAX_BURST],
    ) -> Self {
        unpart(&mut verdicts[..frames.len()], self.elsewhere);
        unpart(frames, self.elsewhere);
        Self {
            elsewhere: 0,
            own: frames.len(),
            owner: None,
            exit: None,
        }
    }
}

/// The ports that packets of a burst leave by, as far as they are transmitted.
#[derive(Clone, Copy)]
pub(super) struct Exits {
    all: u8,
    any: u8,
    /// Some frame may not be as long as its look says: it has grown, or was looked at by itself.
    pub is_odd: bool,
    /// Some frame is handed over.
    pub hands_over: bool,
}

impl Exits {
    pub const NONE: Self = Self {
        all: u8::MAX,
        any: 0,
        is_odd: false,
        hands_over: false,
    };

    pub fn note(&mut self, verdict: Verdict) {
        self.is_odd = true;
        match verdict {
            Verdict::Transmit(port) => self.add(port),
            verdict => {
                self.hands_over |= matches!(verdict, Verdict::HandOff(_));
                self.none();
            }
        }
    }

    /// Something is not transmitted: no port is the only one any more.
    fn none(&mut self) {
        (self.all, self.any) = (0, u8::MAX);
    }

    #[inline(always)]
    pub fn add(&mut self, port: u8) {
        self.all &= port;
        self.any |= port;
    }

    /// The way out of these frames, where it is one for all.
    #[inline(always)]
    pub fn only<F: Frame>(self, frames: &[F], looks: &Looks) -> Option<Exit> {
        let port = (self.all == self.any).then_some(self.any)?;
        let bytes = match self.is_odd {
            false => looks.bytes(frames.len()),
            true => frames.iter().map(|frame| frame.bytes().len() as u64).sum(),
        };
        Some(Exit { port, bytes })
    }
}
