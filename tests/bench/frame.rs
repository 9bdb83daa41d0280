//! The bytes of a frame, and the one's complement sum (RFC 1071), in plain code.

/// Ethernet's header.
pub const L2: usize = 14;

/// The MAC address that the pcap driver gives its first port, and the router's on the clients' side.
pub const OUR_MAC: [u8; 6] = [0x02, 0x70, 0x63, 0x61, 0x70, 0x00];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// The sum of `parts` as big-endian 16-bit words, folded. Only the last part may be of odd length.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for word in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u64::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// An IP packet: where its parts are.
#[derive(Clone, Copy)]
pub struct Ip<'f> {
    pub bytes: &'f [u8],
    pub v6: bool,
}

impl<'f> Ip<'f> {
    pub fn of(bytes: &'f [u8]) -> Self {
        let v6 = bytes[0] >> 4 == 6;
        // A frame may be longer than its packet.
        let field = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let length = if v6 { 40 + field(4) } else { field(2) };
        let bytes = &bytes[..length.min(bytes.len())];
        Self { bytes, v6 }
    }
    pub fn header(self) -> usize {
        if self.v6 { 40 } else { 20 }
    }
    pub fn protocol(self) -> u8 {
        self.bytes[if self.v6 { 6 } else { 9 }]
    }
    pub fn hops(self) -> u8 {
        self.bytes[if self.v6 { 7 } else { 8 }]
    }
    pub fn source(self) -> &'f [u8] {
        &self.bytes[if self.v6 { 8..24 } else { 12..16 }]
    }
    pub fn destination(self) -> &'f [u8] {
        &self.bytes[if self.v6 { 24..40 } else { 16..20 }]
    }
    pub fn l4(self) -> &'f [u8] {
        &self.bytes[self.header()..]
    }
    pub fn port(self, at: usize) -> u16 {
        u16::from_be_bytes([self.l4()[at], self.l4()[at + 1]])
    }
    pub fn header_sum_is_right(self) -> bool {
        self.v6 || sum(&[&self.bytes[..20]]) == 0xffff
    }
    pub fn l4_sum_is_right(self) -> bool {
        let pseudo = (self.l4().len() as u32 + u32::from(self.protocol())).to_be_bytes();
        sum(&[self.source(), self.destination(), &pseudo, self.l4()]) == 0xffff
    }
}
