//! Attacks from where attackers are: on the broker, behind HTTPS, with stolen online keys.
