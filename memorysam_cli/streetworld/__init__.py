"""Mini-DELIVER: procedurally rendered street scenes in the layouts of DELIVER and MCubeS.

No download, and a seed decides everything.

In the order in which a scene comes to be; imports follow it, each module needs only those above it:

* ``surfaces``: labels, materials, colors, and the patterns painted on bodies.
* ``geometry``: bodies, and the camera with the ray caster that finds them.
* ``things``: houses, lamps, signs, vehicles, trees, people, each made of a few bodies.
* ``street``: the ground, and what stands, drives and walks where.
* ``world``: one street with the camera's way through it, and the surface that each pixel shows.
* ``light``: weather, shadows, and the light that reaches the lens.
* ``recordings``: what each sensor makes of surface and light, and how it fails.
* ``scenes``: the plan of a data set, each scene's pictures, their files; ``render`` does it all.
"""
