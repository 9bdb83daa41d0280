//! Balance and disruption of the Maglev table, printed beside the paper's figures (Eisenbud et
//! al., NSDI 2016, section 5.3). Run with `--nocapture` to read it; docs/maglev.md has it. How long a
//! build takes is `scripts/test --only maglev`, in the release profile.

use std::net::Ipv4Addr;

use evenkeel::lb::maglev::{Maglev, Member};

fn members(count: u32) -> Vec<Member> {
    let member = |n| Member {
        address: Ipv4Addr::from_bits(0x0a00_0001 + n).into(),
        port: 80,
        weight: 1,
    };
    (0..count).map(member).collect()
}

/// The largest share over the mean share.
fn balance(table: &Maglev, count: usize) -> f64 {
    let mut shares = vec![0u32; count];
    table.slots().iter().for_each(|&m| shares[m as usize] += 1);
    let most = shares.iter().max().copied().unwrap_or(0);
    f64::from(most) * count as f64 / table.size() as f64
}

/// The share of the survivors' slots that changed hands: those whose owner was not removed.
fn moved(before: (&[Member], &Maglev), after: (&[Member], &Maglev)) -> f64 {
    let (mut kept, mut moved) = (0u32, 0u32);
    for (&b, &a) in before.1.slots().iter().zip(after.1.slots()) {
        let (owner, next) = (before.0[b as usize], after.0[a as usize]);
        if !after.0.iter().any(|m| m.address == owner.address) {
            continue;
        }
        kept += 1;
        moved += u32::from(owner.address != next.address);
    }
    f64::from(moved) / f64::from(kept)
}

/// Without every `step`th member, `count` of them.
fn without(all: &[Member], count: usize) -> Vec<Member> {
    let step = all.len() / count;
    let goes = |n: usize| n.is_multiple_of(step) && n / step < count;
    all.iter()
        .enumerate()
        .filter(|(n, _)| !goes(*n))
        .map(|(_, m)| *m)
        .collect()
}

/// The paper's share of changed entries, read for 1,000 backends: removed, at 65537, at 655373.
const PAPER: [(usize, f64, f64); 4] = [
    (1, 0.0057, 0.0032),
    (5, 0.018, 0.0046),
    (10, 0.023, 0.0057),
    (50, 0.033, 0.0090),
];

#[test]
fn balance_and_disruption_beside_the_paper() {
    for size in [65_537, 655_373] {
        println!("size {size}");
        for count in [10, 100, 1000] {
            let all = members(count);
            let before = Maglev::build(&all, size);
            let balance = balance(&before, all.len());
            println!("  {count:>4} backends: max/avg {balance:.4}");
            assert!(balance <= 1.0 + f64::from(count) / f64::from(size) + 1e-9);
            for (removed, small, large) in PAPER {
                if removed >= all.len() {
                    continue;
                }
                let fewer = without(&all, removed);
                let share = moved((&all, &before), (&fewer, &Maglev::build(&fewer, size)));
                let paper = if size == 65_537 { small } else { large };
                let note = match count {
                    1000 => format!("(paper {:.2} %)", paper * 100.0),
                    _ => String::new(),
                };
                println!(
                    "       {removed:>2} removed: {:.2} % of the others' slots moved {note}",
                    share * 100.0
                );
                if count == 1000 {
                    assert!(share < paper * 1.5 + 0.003, "{share}");
                }
            }
            weight_change(&all, &before, size);
        }
    }
}

/// One backend's weight, doubled: it should gain its share, and others should swap little.
fn weight_change(all: &[Member], before: &Maglev, size: u32) {
    let mut members: Vec<Member> = all.iter().map(|m| Member { weight: 10, ..*m }).collect();
    members[0].weight = 20;
    let after = Maglev::build(&members, size);
    let slots = || before.slots().iter().zip(after.slots());
    let gained = slots().filter(|(b, a)| **b != 0 && **a == 0).count();
    let swapped = slots().filter(|(b, a)| b != a && **a != 0).count();
    let share = |n: usize| n as f64 * 100.0 / f64::from(size);
    println!(
        "       a weight doubled: {:.2} % of all slots to it, {:.2} % between others",
        share(gained),
        share(swapped)
    );
    let due = f64::from(size) / (all.len() as f64 + 1.0);
    assert!(gained as f64 > 0.5 * due && (gained as f64) < 1.5 * due + 2.0);
    assert!(share(swapped) < 15.0);
}
