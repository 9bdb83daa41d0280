//! DNS: a question over UDP, and which answer is good.

use super::Failure;
use crate::mgmt::health::route::Route;
use crate::mgmt::health::stack::{Datagram, Protocol, Stack};
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsProbe {
    pub name: Name,
    pub record: RecordType,
    /// The response code that is good; usually `NoError`.
    pub expect: ResponseCode,
    /// Whether the answer must hold a record of the type asked for.
    pub needs_answer: bool,
}

impl DnsProbe {
    pub(super) async fn ask(
        &self,
        stack: &Stack,
        route: Route,
    ) -> Result<(String, Instant), Failure> {
        let id = RandomState::new().hash_one(0) as u16;
        let question = self
            .question(id)
            .map_err(|why| Failure::NotChecked(why.to_string()))?;
        let mut socket = Datagram::open(stack, Protocol::Udp, route)?;
        socket.send(&question);
        loop {
            let received = socket.receive().await;
            let payload = received.payload.map_err(Failure::answer)?;
            // Whatever is no answer to this question may have been sent by anyone.
            if let Some(text) = self.judge(id, &payload).transpose()? {
                return Ok((text, received.stamp));
            }
        }
    }

    fn question(&self, id: u16) -> Result<Vec<u8>, hickory_proto::ProtoError> {
        let mut message = Message::new();
        message.set_id(id);
        message.set_recursion_desired(true);
        message.add_query(Query::query(self.name.clone(), self.record));
        message.to_vec()
    }

    fn judge(&self, id: u16, payload: &[u8]) -> Option<Result<String, Failure>> {
        let message = Message::from_vec(payload).ok()?;
        let same = |q: &Query| q.name() == &self.name && q.query_type() == self.record;
        let ours = message.id() == id
            && message.message_type() == MessageType::Response
            && message.queries().iter().all(same);
        if !ours {
            return None;
        }
        let code = message.response_code();
        if code != self.expect {
            let text = format!("DNS answered {code}, expected {}", self.expect);
            return Some(Err(Failure::Answer(text)));
        }
        let of_type = |r: &&hickory_proto::rr::Record| r.record_type() == self.record;
        let records = message.answers().iter().filter(of_type).count();
        // A truncated answer has its records left out, but its server works.
        if self.needs_answer && records == 0 && !message.truncated() {
            let text = format!("DNS answered without a {} record", self.record);
            return Some(Err(Failure::Answer(text)));
        }
        Some(Ok(format!("DNS answered {code}, {records} records")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{RData, Record};
    use std::str::FromStr;

    fn probe() -> DnsProbe {
        DnsProbe {
            name: Name::from_str("www.example.").unwrap(),
            record: RecordType::A,
            expect: ResponseCode::NoError,
            needs_answer: true,
        }
    }

    fn answer(probe: &DnsProbe, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::from_vec(&probe.question(7).unwrap()).unwrap();
        message.set_message_type(MessageType::Response);
        let address = RData::A(std::net::Ipv4Addr::LOCALHOST.into());
        message.add_answer(Record::from_rdata(probe.name.clone(), 60, address));
        change(&mut message);
        message.to_vec().unwrap()
    }

    #[test]
    fn answers_are_judged() {
        let probe = probe();
        let judge = |bytes: Vec<u8>| probe.judge(7, &bytes);
        let good = judge(answer(&probe, |_| {})).unwrap().unwrap();
        assert_eq!(good, "DNS answered No Error, 1 records");
        let refused = answer(&probe, |m| {
            m.set_response_code(ResponseCode::ServFail);
        });
        let why = judge(refused).unwrap().unwrap_err().to_string();
        assert!(why.contains("expected No Error"), "{why}");
        let empty = answer(&probe, |m| drop(m.take_answers()));
        let why = judge(empty).unwrap().unwrap_err().to_string();
        assert_eq!(why, "DNS answered without a A record");
    }

    #[test]
    fn what_answers_no_question_of_ours_is_passed_over() {
        let probe = probe();
        assert_eq!(probe.judge(8, &answer(&probe, |_| {})), None);
        assert_eq!(probe.judge(7, &probe.question(7).unwrap()), None);
        assert_eq!(probe.judge(7, b"not DNS"), None);
        let other = answer(&probe, |m| {
            m.add_query(Query::query(Name::root(), RecordType::A));
        });
        assert_eq!(probe.judge(7, &other), None);
    }
}
