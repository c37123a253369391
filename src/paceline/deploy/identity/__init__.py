"""Who is who in a federation: keys, certificates, the signed directory, enrolment."""
