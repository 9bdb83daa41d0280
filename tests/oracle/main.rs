//! A million mutated frames, and a second opinion on each.
//!
//! `generate` makes sound frames of balanced flows and damages some of them, field by field.
//! `judge` reads them with smoltcp's wire types and its own model of the rules, and says what must
//! become of them. It shares no code with the balancer.

mod fragments;
mod generate;
mod judge;
mod look;
mod world;

use std::collections::BTreeMap;

use evenkeel::lb::Verdict;
use evenkeel::lb::counters::DropReason;
use generate::Random;
use judge::{Expect, Judge};
use world::{Outcome, Run, Sent, World};

const FRAMES: usize = 1_000_000;

#[test]
fn an_independent_oracle_agrees_about_a_million_frames() {
    let mut random = Random::new(0x6576_656e_6b65_656c);
    let mut met: BTreeMap<&'static str, usize> = BTreeMap::new();
    let (mut frames, mut forwarded) = (0, 0);
    let worlds = World::all();
    let share = FRAMES / worlds.iter().filter(|world| !world.is_tiny()).count();
    for world in worlds {
        let (mut judge, mut sent_here, mut judged_here) = (Judge::new(&world), 0, 0);
        // Of the full table only a look is taken; hardly a frame there is judged.
        let until = if world.is_tiny() { 0 } else { share + 1 };
        let mut run = Run::new(world);
        let mut take = |judge: &mut Judge, sent: &Sent, expected: Expect, outcome: &Outcome| {
            let context = || format!("{sent:?}\n{outcome:?}");
            assert!(
                expected.allows(outcome.verdict),
                "{expected:?} {}",
                context()
            );
            judge.learn(sent, expected, outcome, &context);
            *met.entry(word(outcome.verdict)).or_default() += 1;
            let judged = expected != Expect::Unjudged;
            forwarded += usize::from(judged && outcome.verdict == Verdict::Transmit(0));
            judged_here += usize::from(judged && expected != Expect::Hold);
            judged_here
        };
        println!("{}", run.name());
        let mut judged = 0;
        while judged < until || sent_here < 20_000 {
            sent_here += 1;
            if sent_here % 400 == 0 {
                assert_eq!(run.jump(), judge.wait(), "fragments that waited in vain");
            }
            run.disturb(&mut random, &mut judge);
            let sent = run.frame(&mut random, &judge);
            let expected = judge.judge(&sent);
            if expected == Expect::Skip {
                continue;
            }
            let outcome = run.process(&sent);
            judged = take(&mut judge, &sent, expected, &outcome);
            for sent in judge.released() {
                let expected = judge.judge(&sent);
                let outcome = run.release().expect("its first fragment came");
                judged = take(&mut judge, &sent, expected, &outcome);
            }
            assert!(
                judge.is_tiny() || run.release().is_none(),
                "its first one did not come"
            );
        }
        frames += judged;
    }
    assert!(frames >= FRAMES);
    println!("{forwarded} of {frames} forwarded; {met:?}");
    assert!(
        forwarded * 10 >= frames * 3,
        "only {forwarded} deserved forwarding"
    );
    for &reason in DropReason::ALL {
        let met = met.contains_key(reason.token());
        assert_eq!(met, place(reason) == Place::Here, "{}", reason.token());
    }
}

/// Where a reason is met in the tests.
#[derive(PartialEq, Debug)]
enum Place {
    /// In this test.
    Here,
    /// In the test of this name in `tests/vdev_drops.rs`.
    Worker(&'static str),
}

/// Every reason has its place: a new one does not compile without.
fn place(reason: DropReason) -> Place {
    use DropReason::*;
    match reason {
        Truncated | MalformedIp | MalformedL4 | BadIpChecksum | ForeignMac | BroadcastMac
        | BadSource | TtlExpired | Untracked | NoBackend | BackendGone | NoNeighbour
        | ReplyConflict | TableFull | TooBig | NoHeadroom | Segmented | Fragment
        | IcmpUnrelated | PoolExhausted | NoBuffer | Limit => Place::Here,
        HandoffFull => Place::Worker("a_full_ring_between_workers_drops"),
        UnknownVlan => Place::Worker("frames_of_other_vlans_are_dropped"),
        PuntFull => Place::Worker("a_full_ring_to_management_drops"),
        TxFull => Place::Worker("a_full_transmit_queue_drops"),
        Shutdown => Place::Worker("what_is_left_at_the_end_is_counted"),
    }
}

#[test]
fn every_reason_that_is_not_met_here_has_a_test_of_its_own() {
    let elsewhere = include_str!("../vdev_drops.rs");
    for &reason in DropReason::ALL {
        if let Place::Worker(name) = place(reason) {
            let test = format!("#[test]\nfn {name}()");
            assert!(elsewhere.contains(&test), "{}: {name}", reason.token());
            let asserts = format!("DropReason::{reason:?}");
            assert!(elsewhere.contains(&asserts), "{asserts}");
        }
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Transmit(_) => "(forward)",
        Verdict::Pass(pass) => pass.token(),
        Verdict::Drop(reason) | Verdict::Reply { reason, .. } => reason.token(),
        Verdict::HandOff(_) => "(hand-off)",
        Verdict::Hold(_) => "(hold)",
    }
}
