//! On which of a machine's addresses other ranks reach it: by the name of an interface, or by a subnet.

use std::net::IpAddr;

use crate::error::{CommError, Result};

/// This machine's address on an interface (`eth1`), or in a subnet (`10.0.0.0/8`, `fd00::/8`). Of several
/// on one interface an IPv4 one is taken; IPv6 addresses that are only valid on the link never are.
///
/// # Errors
/// No such interface, or no address in the subnet: with what there is. Text that is no subnet.
pub fn address_of(choice: &str) -> Result<IpAddr> {
    let all = nix::ifaddrs::getifaddrs()
        .map_err(|why| CommError::system("list the network interfaces", why))?;
    let addresses: Vec<(String, IpAddr)> = all
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            let v6 = || address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
            Some((interface.interface_name, v4.or_else(v6)?))
        })
        .filter(|(_, address)| !is_link_local(address))
        .collect();
    choose(choice, &addresses)
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The address of `choice` among those of this machine.
fn choose(choice: &str, addresses: &[(String, IpAddr)]) -> Result<IpAddr> {
    let subnet = choice.contains('/').then(|| Subnet::parse(choice)).transpose()?;
    let mut found: Vec<IpAddr> = addresses
        .iter()
        .filter(|(name, address)| match &subnet {
            Some(subnet) => subnet.contains(*address),
            None => name == choice,
        })
        .map(|(_, address)| *address)
        .collect();
    // Stable: of one family the first that the system names.
    found.sort_by_key(IpAddr::is_ipv6);
    found.first().copied().ok_or_else(|| {
        let there: Vec<_> =
            addresses.iter().map(|(name, address)| format!("{name} {address}")).collect();
        CommError::Config(format!(
            "this machine has no address on {choice:?}; it has {}",
            if there.is_empty() { "none".into() } else { there.join(", ") }
        ))
    })
}

/// The addresses whose first `prefix` bits are those of `base`.
#[derive(Debug, PartialEq)]
struct Subnet {
    base: IpAddr,
    prefix: u32,
}

impl Subnet {
    fn parse(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(base, prefix)| {
            let base: IpAddr = base.parse().ok()?;
            let bits = if base.is_ipv4() { 32 } else { 128 };
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= bits)?;
            Some(Self { base, prefix })
        });
        parsed.ok_or_else(|| {
            let what = format!("{text:?} is no subnet; write for example 10.0.0.0/8 or fd00::/8");
            CommError::Config(what)
        })
    }

    fn contains(&self, address: IpAddr) -> bool {
        // The bits behind the prefix; all of them for a prefix of 0.
        let differs = match (self.base, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                u128::from((a.to_bits() ^ b.to_bits()).checked_shr(32 - self.prefix).unwrap_or(0))
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(128 - self.prefix).unwrap_or(0)
            }
            _ => return false,
        };
        differs == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn machine() -> Vec<(String, IpAddr)> {
        let address = |name: &str, text: &str| (name.to_owned(), text.parse().unwrap());
        vec![
            address("lo", "127.0.0.1"),
            address("eth0", "fd01::7"),
            address("eth0", "192.168.1.7"),
            address("ib0", "10.4.0.7"),
            address("ib0", "10.4.1.7"),
        ]
    }

    #[test]
    fn by_name_and_by_subnet() {
        for (choice, expected) in [
            ("lo", "127.0.0.1"),
            ("eth0", "192.168.1.7"),
            ("ib0", "10.4.0.7"),
            ("10.4.1.0/24", "10.4.1.7"),
            ("10.0.0.0/8", "10.4.0.7"),
            ("fd00::/8", "fd01::7"),
            ("0.0.0.0/0", "127.0.0.1"),
            ("192.168.1.7/32", "192.168.1.7"),
        ] {
            assert_eq!(choose(choice, &machine()).unwrap().to_string(), expected, "{choice}");
        }
    }

    #[test]
    fn what_there_is_not_is_said_with_what_there_is() {
        for choice in ["eth1", "11.0.0.0/8", "fd02::/16", ""] {
            let error = choose(choice, &machine()).unwrap_err().to_string();
            assert!(error.contains(&format!("on {choice:?}; it has lo 127.0.0.1, ")), "{error}");
        }
        for choice in ["10.0.0.0/33", "10.0.0/8", "/8", "fd00::/129", "10.0.0.0/", "10.0.0.0/-1"] {
            let error = choose(choice, &machine()).unwrap_err().to_string();
            assert!(error.contains("is no subnet"), "{choice}: {error}");
        }
    }

    #[test]
    fn this_machine_has_a_loopback() {
        assert!(address_of("127.0.0.0/8").unwrap().is_loopback());
        assert!(address_of("no such interface").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer_or_an_error(choice in "[0-9a-f:./]{0,24}") {
            let _ = choose(&choice, &machine());
        }

        #[test]
        fn an_address_is_in_its_own_subnets_only_up_to_the_bit_that_differs(
            a in any::<u32>(), bit in 0u32..32, prefix in 0u32..=32,
        ) {
            let address = |bits: u32| IpAddr::V4(bits.into());
            let subnet = Subnet { base: address(a), prefix };
            prop_assert!(subnet.contains(address(a)));
            prop_assert_eq!(subnet.contains(address(a ^ 1 << bit)), prefix <= 31 - bit);
        }
    }
}
