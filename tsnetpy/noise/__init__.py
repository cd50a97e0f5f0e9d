"""The two Noise handshakes: IK for the control protocol (:mod:`.ik`), IKpsk2 for WireGuard (:mod:`.ikpsk2`).

Read first: the Noise Protocol Framework, revision 34, sections 5 and 7.5.
"""
