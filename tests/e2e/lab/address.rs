//! The lab's addresses, in both families.

use std::net::IpAddr;

pub const METHODS: [&str; 3] = ["nat", "tunnel", "direct-routing"];
pub const NAMES: [&str; 3] = ["web-1", "web-2", "web-3"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    pub fn client(self) -> &'static str {
        match self {
            Family::V4 => "198.51.100.10",
            Family::V6 => "2001:db8:c::10",
        }
    }

    /// The router, as the client sees it.
    pub fn clients_router(self) -> &'static str {
        match self {
            Family::V4 => "198.51.100.1",
            Family::V6 => "2001:db8:c::1",
        }
    }

    /// The address that clients ask for a service of `method`, one of [`METHODS`].
    pub fn vip(self, method: &str) -> String {
        let place = METHODS.iter().position(|one| *one == method);
        let last = 81 + place.expect("one of METHODS");
        format!("{}{last}", Arms::One.prefix(self))
    }

    /// Length of every subnet here.
    pub fn length(self) -> u8 {
        match self {
            Family::V4 => 24,
            Family::V6 => 64,
        }
    }

    /// Length of a single address.
    pub fn host_length(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// As `ip` takes it.
    pub fn option(self) -> &'static str {
        match self {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }
}

/// An address and a port as URLs, sockets and `listen` write them.
pub fn with_port(address: &str, port: u16) -> String {
    match address.parse().expect("an address") {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}

/// Where the backends are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arms {
    /// On the switch of the VIPs.
    One,
    /// On a switch of their own, behind evenkeel's second port.
    Two,
}

impl Arms {
    /// The bridge that is the backends' switch.
    pub fn switch(self) -> &'static str {
        match self {
            Arms::One => "lan",
            Arms::Two => "back",
        }
    }

    fn prefix(self, family: Family) -> &'static str {
        match (self, family) {
            (Arms::One, Family::V4) => "192.0.2.",
            (Arms::Two, Family::V4) => "10.0.0.",
            (Arms::One, Family::V6) => "2001:db8::",
            (Arms::Two, Family::V6) => "2001:db8:b::",
        }
    }

    /// That switch's subnet, as in `192.0.2.0/24`.
    pub fn subnet(self, family: Family) -> String {
        let zero = match family {
            Family::V4 => "0",
            Family::V6 => "",
        };
        format!("{}{zero}/{}", self.prefix(family), family.length())
    }

    /// The address there that ends in these decimal digits.
    pub fn address(self, family: Family, last: usize) -> String {
        format!("{}{last}", self.prefix(family))
    }

    /// The router's address on that switch.
    pub fn router(self, family: Family) -> String {
        format!("{}1", self.prefix(family))
    }

    /// Evenkeel's own address on that switch.
    pub fn evenkeel(self, family: Family) -> String {
        format!("{}2", self.prefix(family))
    }

    /// Where evenkeel's health checks on that switch come from.
    pub fn check_address(self) -> String {
        format!("{}3", self.prefix(Family::V4))
    }

    /// The backends' own addresses, in the order of [`NAMES`].
    pub fn backends(self, family: Family) -> [String; 3] {
        [11, 12, 13].map(|last| format!("{}{last}", self.prefix(family)))
    }
}
